"""Request bodies, from keyword arguments: what no server would accept is refused before anything is sent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from numbers import Real
from typing import Any, Final, Literal

from typing_extensions import override

from eft_client.errors import WrongArgument

__all__ = [
    "UNSET",
    "Activations",
    "ScoreItem",
    "Unset",
    "beside_scores",
    "chat_body",
    "eft_body",
    "explain_body",
    "score_body",
    "text_body",
]


class Unset(Enum):
    """The type of UNSET."""

    UNSET = "UNSET"

    @override
    def __repr__(self) -> str:
        return self.value


UNSET: Final = Unset.UNSET
"""Not given at all, where None means something: ``filter=None`` turns an alias's filter off."""

Behaviour = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ScoreItem:
    """A text to score: what came before it, and the completion itself.

    Attributes:
        completion: The text to score, or its token ids.
        messages: The chat that it answers; or
        prompt: the text, or the token ids, that it continues. One of the two.
        prompts: beside a prompt, text or token ids by member, for members that are not to read it.
        end: Whether the end of the turn is part of the completion.
    """

    completion: str | Sequence[int]
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | Sequence[int] | None = None
    prompts: Mapping[str, str | Sequence[int]] | None = None
    end: bool = False


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Which states inside members are wanted beside scores.

    Attributes:
        layers: Decoder layers, from 0, or from -1 at the end; or all of them.
        members: The members: all, or those named.
        site: What a layer adds up to, or what its feed-forward module gives.
        pool: Of which tokens of a completion: the last, the mean over all, or each.
    """

    layers: Sequence[int] | Literal["all"]
    members: Literal[True] | Sequence[str] = True
    site: Literal["residual", "mlp"] = "residual"
    pool: Literal["last", "mean", "none"] = "last"


def eft_body(  # noqa: PLR0913 (one for each key)
    *,
    weights: Mapping[str, float] | None = None,
    scale: float | None = None,
    amplify: float | None = None,
    filter: Mapping[str, Any] | Literal[Unset.UNSET] | None = UNSET,  # noqa: A002 (the field's name)
    coefficients: Mapping[str, float] | None = None,
    report: bool = False,
) -> dict[str, Any]:
    """The ``extra_body`` that gives a request of OpenAI's own client these weights.

    Empty where nothing is given, so that it can go to any OpenAI-compatible server.

    Args:
        weights: A number for each expert; one that is not named counts 0.
        scale: The factor on all weights.
        amplify: The factor on the up-scaling delta.
        filter: ``{"kind": "expert" or "base", "top_p": number}``; None turns off the one that the model has.
        coefficients: A number for each member, in place of weights.
        report: Whether the answer's ``eft`` tells what the experts changed, beside the base.

    Raises:
        WrongArgument: A number is not finite, or is none; or report is neither True nor False.
    """
    eft: dict[str, Any] = {}
    if weights is not None:
        eft["weights"] = _numbers("weights", weights)
    if scale is not None:
        eft["scale"] = _number("scale", scale)
    if amplify is not None:
        eft["amplify"] = _number("amplify", amplify)
    if filter is not UNSET:
        eft["filter"] = _filter(filter)
    if coefficients is not None:
        eft["coefficients"] = _numbers("coefficients", coefficients)
    if not isinstance(report, bool):
        raise WrongArgument(f"report must be True or False, not {report!r:.200}")
    if report:
        eft["report"] = True
    return {"eft": eft} if eft else {}


def chat_body(
    messages: str | Sequence[Mapping[str, Any]], behaviour: Behaviour, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of a chat, less its model; text is one message of the user.

    Raises:
        WrongArgument: The messages are none, or a weight is no finite number.
    """
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(given, Sequence) or not all(isinstance(message, Mapping) for message in given):
        raise WrongArgument(
            f"messages must be text or a list of objects with role and content, not {given!r:.200}"
        )
    return {"messages": [dict(message) for message in given], **_fields(behaviour, options)}


def text_body(
    prompt: str | Sequence[int], behaviour: Behaviour, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of a completion, less its model.

    Raises:
        WrongArgument: A weight is no finite number.
    """
    return {"prompt": _prompt("prompt", prompt), **_fields(behaviour, options)}


def score_body(
    items: Sequence[ScoreItem | Mapping[str, Any]],
    members: bool | Sequence[str],
    further: Mapping[str, Any],
    behaviour: Behaviour,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a request for scores, less its model; `further` is what is wanted beside them.

    Raises:
        WrongArgument: There are no items, one has not exactly one of messages and prompt, or a weight is no
            finite number.
    """
    if isinstance(items, str | Mapping | ScoreItem) or not items:
        raise WrongArgument(
            "items must be a list of at least one object with completion and messages or prompt"
        )
    wanted = members if isinstance(members, bool) else list(members)
    asked = [_item(index, item) for index, item in enumerate(items)]
    return {"items": asked, "members": wanted, **further, **_fields(behaviour, options)}


def beside_scores(statistics: bool, activations: Activations | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields for what is wanted beside scores.

    Raises:
        WrongArgument: statistics is neither True nor False, or activations are no object with layers.
    """
    if not isinstance(statistics, bool):
        raise WrongArgument(f"statistics must be True or False, not {statistics!r:.200}")
    fields: dict[str, Any] = {"statistics": True} if statistics else {}
    if activations is None:
        return fields
    given = asdict(activations) if isinstance(activations, Activations) else activations
    if not isinstance(given, Mapping) or "layers" not in given:
        raise WrongArgument(
            f"activations must be an object with layers, such as {{'layers': [0, -1]}}, not {activations!r:.200}"
        )
    return fields | {"activations": {key: _plain(value) for key, value in given.items()}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def explain_body(
    messages: str | Sequence[Mapping[str, Any]] | None,
    prompt: str | Sequence[int] | None,
    completion: str | Sequence[int] | None,
    behaviour: Behaviour,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a request for an explanation, less its model.

    Raises:
        WrongArgument: There is not exactly one of messages and prompt, or a weight is no finite number.
    """
    if (messages is None) == (prompt is None):
        raise WrongArgument("give either messages or a prompt to explain, and not both")
    given = {} if completion is None else {"completion": _prompt("completion", completion)}
    if messages is not None:
        return chat_body(messages, behaviour, options) | given
    return {"prompt": _prompt("prompt", prompt), **given, **_fields(behaviour, options)}


def _item(index: int, item: ScoreItem | Mapping[str, Any]) -> dict[str, Any]:
    given = asdict(item) if isinstance(item, ScoreItem) else dict(item)
    given = {key: value for key, value in given.items() if value is not None}
    if "completion" not in given or ("messages" in given) == ("prompt" in given):
        raise WrongArgument(
            f"items[{index}] must have a completion and either messages or a prompt, not {given!r:.200}"
        )
    given["completion"] = _prompt(f"items[{index}].completion", given["completion"])
    if "prompt" in given:
        given["prompt"] = _prompt(f"items[{index}].prompt", given["prompt"])
    return given


def _fields(behaviour: Behaviour, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**options, **eft_body(**behaviour)}


def _prompt(name: str, prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return list(prompt)
    raise WrongArgument(f"{name} must be text or a list of token ids, not {prompt!r:.200}")


def _numbers(name: str, numbers: Any) -> dict[str, float]:
    if not isinstance(numbers, Mapping):
        raise WrongArgument(
            f"{name} must be numbers by name, such as {{'helpful': 0.7}}, not {numbers!r:.200}"
        )
    return {str(key): _number(f"{name}.{key}", value) for key, value in numbers.items()}


def _number(name: str, value: Any) -> float:
    """A finite number; numpy's are taken, and what is whole stays an int."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise WrongArgument(f"{name} must be a number, not {value!r:.200}")
    if isinstance(value, int):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise WrongArgument(f"{name} must be a finite number, not {number}")
    return number


def _filter(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise WrongArgument(f"filter must be {{'kind': …, 'top_p': …}} or None, not {value!r:.200}")
    return {key: _number("filter.top_p", v) if key == "top_p" else v for key, v in value.items()}
