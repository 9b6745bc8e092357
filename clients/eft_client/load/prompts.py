"""The prompts of a load test: synthetic ones of given lengths, or those of a file."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from eft_client.jsonl import json_value
from eft_client.load.errors import LoadError
from eft_client.text import read_text

__all__ = ["FromFile", "Lengths", "LoadPrompt", "PromptSource", "Synthetic", "TokensPerWord", "read_prompts"]

MAX_FILE_BYTES = 256 << 20
MAX_PROMPTS = 200_000
MAX_TOKENS = 1 << 20

#: Short and common, so that most tokenizers know each as one token or two.
_VOCABULARY = """
able about above across add after again air all almost also always animal answer area ask away back be because become
began best better between big bird body book both box boy bring build call came car carry cause change check children
city clear close cold color come common complete contain could country course cover cross cut dark day decide deep did
different direct does dog door down draw drive dry during each early earth east eat end enough even ever every example
eye face fact fall family far farm fast father feel feet few field figure fill final find fine fire first fish five
follow food foot force form found four free friend full game gave girl give gold good govern great green ground group
grow half hand happen hard head hear heat help here high hold home horse hot hour house hundred idea inch interest
island just keep kind king knew land language large last late laugh lead learn leave left letter life light line list
listen little live long look love low machine made main make many map mark mean measure men might mile mind minute
money moon morning most mother mountain move much music name near need never new next night north note notice noun
number ocean often old only open order other over page paper part pass pattern people perhaps person picture piece
place plain plan plane plant play point poor port power present problem produce product pull question quick rain ran
reach read ready real record red remember rest right river road rock room round rule run same sea second see seem self
sentence serve set several shape ship short should show side simple since sing size sleep slow small snow some song
soon sound south space special stand star start state stay step still stood stop story street strong study such sun
sure surface table take talk teach tell ten test than thing think thought thousand three through time together told
took top town travel tree true try turn under unit until usual very voice vowel wait walk want war warm watch water
wave week well west wheel white whole wind wood word work world write year yellow young
"""
_WORDS = tuple(_VOCABULARY.split())


@dataclass(frozen=True)
class LoadPrompt:
    """One prompt: text or a conversation, and how many tokens may answer it (None: the run's default)."""

    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int | None = None


class PromptSource(Protocol):
    """A source of prompts, endless and seeded."""

    def draw(self, same: str, own: str) -> Iterator[LoadPrompt]:
        """The prompts of one round.

        Args:
            same: the seed of what all targets of a round have in common: the lengths.
            own: the seed of what differs between them: the words. A server that remembers prompts would otherwise
                answer its second target from the first one's cache.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A number of tokens: uniform between mean · (1 − spread) and mean · (1 + spread), and at least 1."""

    mean: int
    spread: float = 0.0

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return max(1, round(self.mean * (1 + self.spread * rng.uniform(-1, 1))))


@dataclass(frozen=True, kw_only=True)
class TokensPerWord:
    """How many tokens words become: overhead + per_word · words, from what a server counted in two prompts."""

    overhead: float = 0.0
    per_word: float = 1.3

    @classmethod
    def from_counts(cls, first: tuple[int, int], second: tuple[int, int]) -> "TokensPerWord":
        """From two prompts' (words, tokens); the second has more words."""
        per_word = max(0.25, (second[1] - first[1]) / (second[0] - first[0]))
        return cls(overhead=max(0.0, second[1] - per_word * second[0]), per_word=per_word)

    def words(self, tokens: int) -> int:
        """How many words make this number of tokens, and at least one."""
        return max(1, round((tokens - self.overhead) / self.per_word))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Plain words in random order. Their number is right on average; figures use the server's `usage`."""

    input_tokens: Lengths
    output_tokens: Lengths
    rate: TokensPerWord = TokensPerWord()

    def draw(self, same: str, own: str) -> Iterator[LoadPrompt]:
        """See `PromptSource.draw`."""
        lengths, words = random.Random(same), random.Random(own)
        while True:
            count = self.rate.words(self.input_tokens.draw(lengths))
            yield LoadPrompt(text=self.text(count, words), max_tokens=self.output_tokens.draw(lengths))

    @staticmethod
    def text(words: int, rng: random.Random) -> str:
        """Random words, as many as `words`."""
        return " ".join(rng.choices(_WORDS, k=words))


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """A file's prompts in its order, from the beginning again when they are used up.

    Attributes:
        prompts: at least one.
        distinct: whether each begins with different random words, so that no server answers from a prefix cache.
    """

    prompts: tuple[LoadPrompt, ...]
    distinct: bool = False

    def draw(self, same: str, own: str) -> Iterator[LoadPrompt]:  # noqa: ARG002 (files have their lengths)
        """See `PromptSource.draw`."""
        rng = random.Random(own)
        while True:
            for prompt in self.prompts:
                yield _marked(prompt, Synthetic.text(4, rng)) if self.distinct else prompt


def _marked(prompt: LoadPrompt, words: str) -> LoadPrompt:
    if prompt.messages is None:
        return replace(prompt, text=f"{words}\n{prompt.text}")
    first, *others = prompt.messages
    return replace(prompt, messages=[{**first, "content": f"{words}\n{first['content']}"}, *others])


def read_prompts(path: Path, *, chat: bool, distinct: bool = False) -> FromFile:
    """Read a file of prompts: `.jsonl`, one object a line; `.json`, a list in ShareGPT's form.

    A line is `{"prompt": text}` or `{"messages": […]}`, each with "max_tokens" where it wants its own; in ShareGPT's
    form the first turn of each conversation is asked.

    Args:
        path: the file.
        chat: whether the prompts are for the chat endpoint; the other one takes no messages.
        distinct: see `FromFile`.

    Raises:
        LoadError: The file is missing or too large, or holds something else; the message names the place and the value.
    """
    content = read_text(path, MAX_FILE_BYTES, LoadError)
    if path.suffix == ".json":
        found = _share_gpt(_parsed(content, str(path)), path)
    else:
        lines = ((number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip())
        found = [_line(line, f"{path}, line {number}", chat) for number, line in lines]
    if not found or len(found) > MAX_PROMPTS:
        raise LoadError(f"{path}: {len(found)} prompts; expected 1 to {MAX_PROMPTS}")
    return FromFile(prompts=tuple(found), distinct=distinct)


def _line(line: str, place: str, chat: bool) -> LoadPrompt:
    entry = _parsed(line, place)
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        raise LoadError(f'{place}: expected {{"prompt": "…"}} or {{"messages": […]}}, not {_shown(entry)}')
    max_tokens = entry.get("max_tokens")
    if max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= MAX_TOKENS):
        raise LoadError(
            f"{place}: max_tokens must be a whole number from 1 to {MAX_TOKENS}, not {_shown(max_tokens)}"
        )
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            raise LoadError(f"{place}: prompt must be text that is not empty, not {_shown(entry['prompt'])}")
        return LoadPrompt(text=entry["prompt"], max_tokens=max_tokens)
    if not chat:
        raise LoadError(f"{place}: messages are for --endpoint chat; the completions endpoint takes a prompt")
    return LoadPrompt(messages=_messages(entry["messages"], place), max_tokens=max_tokens)


def _messages(messages: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise LoadError(f"{place}: messages must be a list that is not empty, not {_shown(messages)}")
    for message in messages:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise LoadError(
                f'{place}: a message must be {{"role": text, "content": text}}, not {_shown(message)}'
            )
    return messages


def _share_gpt(entries: Any, path: Path) -> list[LoadPrompt]:
    if not isinstance(entries, list):
        raise LoadError(f'{path}: expected a list of {{"conversations": […]}}, not {_shown(entries)}')
    return [prompt for number, entry in enumerate(entries, 1) for prompt in _first_turn(entry, path, number)]


def _first_turn(entry: Any, path: Path, number: int) -> list[LoadPrompt]:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        raise LoadError(f'{path}, entry {number}: expected {{"conversations": […]}}, not {_shown(entry)}')
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise LoadError(
                f'{path}, entry {number}: a turn must be {{"from": …, "value": text}}, not {_shown(turn)}'
            )
    # Some conversations of the published file have no turn, or begin in the middle.
    return [LoadPrompt(text=turns[0]["value"])] if turns and turns[0]["value"] else []


def _parsed(text: str, place: str) -> Any:
    try:
        return json_value(text)
    except ValueError as error:
        raise LoadError(f"{place}: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
