"""The commands of a chat: lines that begin with a slash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from eft_client.chat.behaviour import Behaviour
from eft_client.chat.conversation import Conversation
from eft_client.chat.draft import applied
from eft_client.chat.screen import BOLD, DIM
from eft_client.errors import WrongArgument
from eft_client.weights import (
    model_and_behaviour,
    number_in,
    parse_behaviour,
    parse_filter,
    parse_weights,
    words_in,
)

if TYPE_CHECKING:
    from eft_client.chat.session import Chat

__all__ = ["COMMANDS", "Command", "completions", "run_command"]

DEFAULT = "default"
OFF = "off"
MAX_CANDIDATES = 200


@dataclass(frozen=True)
class Command:
    """One command: its form and what it does, as `/help` says them."""

    form: str
    help: str
    run: Callable[["Chat", str], None]


COMMANDS: dict[str, Command] = {}


def _command(name: str, form: str, help: str) -> Callable[[Callable[["Chat", str], None]], Any]:  # noqa: A002
    def enter(run: Callable[["Chat", str], None]) -> Callable[["Chat", str], None]:
        COMMANDS[name] = Command(f"/{name} {form}".rstrip(), help, run)
        return run

    return enter


def run_command(chat: "Chat", text: str) -> None:
    """Do what a line such as `/weights helpful=0.7` says.

    Raises:
        EftError: There is no such command, or it cannot be done.
    """
    name, _, argument = text[1:].partition(" ")
    if name not in COMMANDS:
        raise WrongArgument(
            f"unknown command /{name}; /help lists the commands (// sends a line that begins with a slash)"
        )
    COMMANDS[name].run(chat, argument.strip())


def completions(chat: "Chat", before: str, word: str) -> Sequence[str]:
    """What the word that is being typed may become, given what stands before it."""
    if not before:
        return [f"/{name} " for name in COMMANDS] if word.startswith("/") else []
    command = before[1:].split(" ", 1)[0] if before.startswith("/") else ""
    models = [card.id for card in chat.cards]
    experts = [f"{expert.name}=" for expert in chat.behaviour.family]
    choices = {
        "weights": [*experts, DEFAULT],
        "compare": [*experts, *models, "scale=", "amplify=", "filter=", OFF],
        "model": models,
        "filter": ["expert:", "base:", OFF, DEFAULT],
        "scale": [DEFAULT],
        "amplify": [DEFAULT],
        "temperature": [DEFAULT],
        "max-tokens": [DEFAULT],
        "seed": [OFF],
        "system": [OFF],
    }
    if command in ("save", "load"):
        return sorted(glob(f"{escape(word)}*"))[:MAX_CANDIDATES]
    return choices.get(command, [])


@_command(
    "weights", "expert=number …", "steer by these experts; `default` for the model's; without any, show them"
)
def _weights(chat: "Chat", argument: str) -> None:
    if not argument:
        _show_experts(chat)
    elif argument == DEFAULT:
        _behave(chat, chat.behaviour.without("weights"))
    else:
        _behave(chat, chat.behaviour.changed({"weights": parse_weights(argument)}))


@_command("scale", "NUMBER", "the factor on all weights; or `default`")
def _scale(chat: "Chat", argument: str) -> None:
    _factor(chat, "scale", argument)


@_command("amplify", "NUMBER", "the factor on the up-scaling delta; or `default`")
def _amplify(chat: "Chat", argument: str) -> None:
    _factor(chat, "amplify", argument)


@_command(
    "filter",
    "KIND:TOP_P",
    "let the small models choose only within a nucleus, such as expert:0.9; `off`; `default`",
)
def _filter(chat: "Chat", argument: str) -> None:
    if argument == DEFAULT:
        _behave(chat, chat.behaviour.without("filter"))
    elif argument:
        _behave(chat, chat.behaviour.changed({"filter": parse_filter(argument)}))
    else:
        _tell_behaviour(chat)


@_command("model", "NAME", "ask another model, alias or member, with its own weights")
def _model(chat: "Chat", argument: str) -> None:
    if argument:
        _behave(chat, chat.named(argument))
    else:
        _tell_behaviour(chat)


@_command("models", "", "list the names that the server answers to")
def _models(chat: "Chat", argument: str) -> None:
    _require_nothing("models", argument)
    rows = []
    for card in chat.cards:
        behaviour = Behaviour(card, chat.behaviour.family).label.removeprefix(card.id).strip()
        rows.append((card.id, card.kind or "", behaviour, card.description))
    _table(chat, rows)


@_command(
    "compare",
    "LEFT | RIGHT",
    "let two settings answer side by side, such as helpful=1 | harmless=1 scale=0.5; `off` ends it",
)
def _compare(chat: "Chat", argument: str) -> None:
    if argument == OFF:
        chat.compared = None
        _tell_behaviour(chat)
        return
    if argument:
        sides = argument.split("|")
        if len(sides) != 2:
            raise WrongArgument(
                f"{argument!r} is not of the form LEFT | RIGHT, such as helpful=1 | harmless=1"
            )
        chat.compared = (_side(chat, sides[0]), _side(chat, sides[1]))
    if chat.compared is None:
        raise WrongArgument("nothing is compared; expected /compare helpful=1 | harmless=1")
    left, right = chat.compared
    chat.screen.tell(
        f"left:  {left.label}\nright: {right.label}\nBoth answer from now on; /retry asks the last question again."
    )


@_command("system", "TEXT", "the system message; `off` for none; without a text, show it")
def _system(chat: "Chat", argument: str) -> None:
    if argument:
        chat.conversation.system = None if argument == OFF else argument
    chat.screen.say(chat.conversation.system or "(no system message)", DIM)


@_command("temperature", "NUMBER", "0 always takes the most likely token; or `default`")
def _temperature(chat: "Chat", argument: str) -> None:
    if argument:
        value = None if argument == DEFAULT else number_in("temperature", argument)
        chat.sampling = replace(chat.sampling, temperature=value)
    _tell_sampling(chat)


@_command("max-tokens", "COUNT", "the longest answer; or `default`")
def _max_tokens(chat: "Chat", argument: str) -> None:
    if argument:
        value = None if argument == DEFAULT else _count("max-tokens", argument, 1)
        chat.sampling = replace(chat.sampling, max_tokens=value)
    _tell_sampling(chat)


@_command("seed", "NUMBER", "for reproducible answers; or `off`")
def _seed(chat: "Chat", argument: str) -> None:
    if argument:
        chat.sampling = replace(chat.sampling, seed=None if argument == OFF else _count("seed", argument, 0))
    _tell_sampling(chat)


@_command("history", "", "show the chat so far, with what was applied to each answer")
def _history(chat: "Chat", argument: str) -> None:
    _require_nothing("history", argument)
    if chat.conversation.system:
        chat.screen.say(f"system: {chat.conversation.system}", DIM)
    for number, turn in enumerate(chat.conversation.turns, start=1):
        chat.screen.say(f"{number}> {turn.question}", BOLD)
        for answer in turn.answers:
            chat.screen.say(f"[{applied(answer.model, answer.eft)}]", DIM)
            chat.screen.say(answer.text)
    if not chat.conversation.turns:
        chat.screen.say("(nothing was said yet)", DIM)


@_command("retry", "", "ask the last question again")
def _retry(chat: "Chat", argument: str) -> None:
    _require_nothing("retry", argument)
    chat.retry()


@_command("undo", "", "forget the last question and its answer")
def _undo(chat: "Chat", argument: str) -> None:
    _require_nothing("undo", argument)
    if not chat.conversation.turns:
        raise WrongArgument("there is nothing to undo")
    chat.forget()
    chat.screen.tell(f"forgotten: {chat.conversation.turns.pop().question}")


@_command("clear", "", "forget all questions and answers")
def _clear(chat: "Chat", argument: str) -> None:
    _require_nothing("clear", argument)
    chat.forget()
    chat.conversation.turns.clear()
    chat.screen.tell("forgotten: everything that was said")


@_command("save", "FILE", "write the chat as JSON")
def _save(chat: "Chat", argument: str) -> None:
    path = _path("save", argument)
    chat.conversation.save(path)
    chat.screen.tell(f"saved to {path}")


@_command("load", "FILE", "continue a chat that was saved")
def _load(chat: "Chat", argument: str) -> None:
    chat.conversation = Conversation.load(_path("load", argument))
    chat.forget()
    chat.screen.tell(f"loaded: {len(chat.conversation.turns)} questions and their answers")


@_command("help", "", "show this list")
def _help(chat: "Chat", argument: str) -> None:
    _require_nothing("help", argument)
    _table(chat, [(command.form, command.help) for command in COMMANDS.values()])
    chat.screen.say(
        "Anything else is a message; a line that ends in \\ continues in the next, and // begins one with a slash.\n"
        "Ctrl-C stops an answer, Ctrl-D leaves, Tab completes, the arrow keys recall what you typed before.",
        DIM,
    )


@_command("quit", "", "leave")
def _quit(chat: "Chat", argument: str) -> None:
    _require_nothing("quit", argument)
    chat.over = True


def _behave(chat: "Chat", behaviour: Behaviour) -> None:
    chat.behaviour = behaviour
    _tell_behaviour(chat)


def _tell_behaviour(chat: "Chat") -> None:
    chat.screen.tell(f"[{chat.behaviour.label}]")
    if chat.compared:
        chat.screen.tell("Two other settings are compared; /compare off ends that.")


def _tell_sampling(chat: "Chat") -> None:
    given = " ".join(f"{name}={value}" for name, value in chat.sampling.options.items())
    chat.screen.tell(f"[{given or 'sampling defaults of the server'}]")


def _factor(chat: "Chat", key: str, argument: str) -> None:
    if argument == DEFAULT:
        _behave(chat, chat.behaviour.without(key))
    elif argument:
        _behave(chat, chat.behaviour.changed({key: number_in(key, argument)}))
    else:
        _tell_behaviour(chat)


def _side(chat: "Chat", text: str) -> Behaviour:
    """One side of a comparison: a model, or the one that is asked now, with some of its settings changed."""
    words = words_in(text)
    # Of `demo:helpful=0.7,harmless=0.3` the weights are settings as any others.
    words = [part for word in words for part in model_and_behaviour(word) if part]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise WrongArgument(f"{text.strip()!r} names several models: {', '.join(names)}")
    behaviour = chat.named(names[0]) if names else chat.behaviour
    return behaviour.changed(parse_behaviour(" ".join(word for word in words if "=" in word)))


def _show_experts(chat: "Chat") -> None:
    weights = chat.behaviour.weights
    if not chat.behaviour.takes_weights:
        raise WrongArgument(f"{chat.behaviour.card.id} takes no weights")
    rows = [("expert", "weight", "allowed")]
    for expert in chat.behaviour.family:
        rows.append((expert.name, f"{weights.get(expert.name, 0):g}", f"{expert.min:g} to {expert.max:g}"))
    _table(chat, rows)


def _table(chat: "Chat", rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (w - cell_len(cell)) for cell, w in zip(row, widths, strict=True))
        chat.screen.say("  ".join(cells).rstrip())


def _require_nothing(name: str, argument: str) -> None:
    if argument:
        raise WrongArgument(f"/{name} takes no argument, not {argument!r}")


def _path(name: str, argument: str) -> Path:
    if not argument:
        raise WrongArgument(f"/{name} needs a file, such as /{name} chat.json")
    return Path(argument).expanduser()


def _count(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) >= least):
        raise WrongArgument(f"{name} must be a whole number from {least}, not {text!r}")
    return int(text)
