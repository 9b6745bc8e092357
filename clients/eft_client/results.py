"""What servers send, checked, as plain values: answers, pieces of one, models, behaviours, scores.

Strict in what makes an answer; lenient in what it does not know and in what only goes with an answer.
"""

import json
import math
import sys
from array import array
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import from_json
from typing_extensions import override

from eft_client.errors import BadAnswer, error_in
from eft_client.text import mended, printable, shortened

__all__ = [
    "Behaviours",
    "ChatResult",
    "Choice",
    "Contributions",
    "Expert",
    "ExplainedToken",
    "Explanation",
    "LayerActivations",
    "Likely",
    "LikelyToken",
    "MemberScores",
    "MemberView",
    "ModelCard",
    "Piece",
    "Report",
    "Reward",
    "ScoreResult",
    "ScoredItem",
    "Statistics",
    "TextResult",
    "Usage",
    "WithoutExpert",
    "behaviours_in",
    "chat_result",
    "explanation",
    "json_object",
    "model_cards",
    "parsed",
    "pieces_in",
    "score_result",
    "text_result",
]

SHOWN_CHARS = 120
_EXCERPT_CHARS = 200
_MAX_DIGITS = 18


# The forms that values have in JSON


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


def _whole(value: Any) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS:
        return int(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


def _word(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _name(value: Any) -> str:
    word = _word(value)
    return word if isinstance(word, str) else ""


def _said(value: Any) -> str:
    """The text of a string, of null, or of a list of parts of which some are text."""
    if isinstance(value, list):
        return "".join(text for part in value if isinstance(text := _part(part), str))
    if not isinstance(text := _part(value), str):
        raise ValueError("Input should be text, or a list of its parts")
    return text


def _part(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type", "text") in ("text", "output_text"):
        value = value.get("text")
    return "" if value is None else value


def _finite(value: Any) -> Any:
    json.dumps(value, allow_nan=False)  # raises where a number in it is not finite
    return value


def _logprob(value: Any, info: ValidationInfo) -> Any:
    if info.context is _FROM_SERVER and isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number, or null")
    return -math.inf if value is None else value


def _bytes(value: Any) -> Any:
    return (
        bytes(value)
        if isinstance(value, list) and all(type(b) is int and 0 <= b < 256 for b in value)
        else value
    )


def _floats(value: Any) -> "_Floats":
    """Numbers from base64 of little-endian float32."""
    if not isinstance(value, str):
        raise ValueError("Input should be base64")
    numbers = array("f")
    numbers.frombytes(b64decode(value, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _by_index(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(items, key=lambda item: item.index))


if TYPE_CHECKING:
    _Floats: TypeAlias = array[float]
else:  # Before Python 3.12 it takes no type.
    _Floats = array
_FROM_SERVER = object()
_V = TypeVar("_V")
_T = TypeVar("_T", bound=BaseModel)
Kind = Literal["composite", "alias", "member"]
_Object = Mapping[str, Any]
# Taken as it came: text that ends in half a character is no str to pydantic.
_Said = Annotated[str, PlainValidator(_said)]
_Word = Annotated[str, BeforeValidator(_word)]
_Whole = Annotated[int, BeforeValidator(_whole)]
_List = Annotated[tuple[_V, ...], Field(strict=False)]
# What only goes with an answer is left out where it has another form: the answer is of use without it.
_Optional = Annotated[_V | None, WrapValidator(_or_none)]
_Finite = Annotated[_Object, AfterValidator(_finite)]
# In JSON a log-probability of −inf is null; a reward that is not finite, too, and says less.
_Logprob = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_logprob)]
_Difference = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(lambda value: math.nan if value is None else value)
]


_Bytes = Annotated[bytes, BeforeValidator(_bytes)]


class _Result(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """As in OpenAI's own client, null in place of what may be absent says no more than its absence."""
        if not isinstance(given, dict):
            return given
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {key: value for key, value in given.items() if value is not None or key in required}

    @override
    def __str__(self) -> str:
        return repr(self)


# Answers


class Usage(_Result):
    """The number of tokens of a request."""

    prompt_tokens: _Whole = 0
    completion_tokens: _Whole = 0
    total_tokens: _Whole = 0


class Report(_Result):
    """What the experts changed in an answer, beside the base.

    Attributes:
        tokens: The number of generated tokens, over all choices.
        changed: The share of them at whose position the most likely token is not the base's.
        kl: The mean KL(composite‖base) over their positions, in nats; None where it is infinite.
    """

    tokens: _Whole
    changed: float
    kl: float | None = None


class Choice(_Result):
    """One of the answers to a request.

    Attributes:
        index: Its place among them.
        text: The answer; empty where the model called tools instead.
        finish_reason: Why it ended: "stop", "length", "tool_calls" …
        logprobs: The server's JSON on them, if asked for.
        message: In a chat, the whole message: tool calls and reasoning are in it.
    """

    index: int
    text: Annotated[_Said, AfterValidator(mended)]
    finish_reason: _Optional[_Word] = None
    logprobs: _Optional[_Finite] = None
    message: _Object = Field(default_factory=dict, repr=False)


class _Answer(_Result):
    """What answers of every kind have in common."""

    model: Annotated[str, BeforeValidator(_name)] = ""
    usage: _Optional[Usage] = None
    eft: _Optional[_Finite] = None
    id: _Optional[_Word] = None
    raw: SkipValidation[_Object] = Field(default_factory=dict)


class TextResult(_Answer):
    """The answer to a request for text.

    Attributes:
        choices: One for each of the `n` asked for (and for each prompt), by index.
        model: The name that answered.
        usage: Prompt and completion tokens, if the server counts them.
        eft: The behaviour that was applied, complete; None from a server that knows of none.
        id: The server's name for the answer.
        raw: The server's JSON, whole.
    """

    choices: Annotated[_List[Choice], Field(min_length=1), AfterValidator(_by_index)]

    @property
    def report(self) -> Report | None:
        """What the experts changed, if it was asked for and a token was generated."""
        return _report_in(self.eft)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @override
    def __repr__(self) -> str:
        more = f" and {len(self.choices) - 1} more" if len(self.choices) > 1 else ""
        return f"<{type(self).__name__} of {shortened(self.model, 80)}: {_quoted(self.text)}{more}>"

    @override
    def __str__(self) -> str:
        return self.text


class ChatResult(TextResult):
    """The answer to a chat; see TextResult for its attributes."""


class Piece(_Result):
    """A piece of an answer as it is written.

    Attributes:
        text: What it adds; empty in pieces that only carry other fields.
        index: The choice that it belongs to.
        finish_reason: In a choice's last piece, why it ended.
        eft: In the first piece, the behaviour that is applied; in the last choice's last, again with a report.
        logprobs: The server's JSON on them, if asked for.
        usage: In the last piece, if asked for with ``stream_options={"include_usage": True}``.
        delta: The server's JSON: parts of tool calls and of reasoning are in it.
    """

    text: _Said = ""
    index: int = 0
    finish_reason: _Optional[_Word] = None
    eft: _Optional[_Finite] = None
    logprobs: _Optional[_Finite] = None
    usage: _Optional[Usage] = None
    delta: _Object = Field(default_factory=dict, repr=False)

    @property
    def report(self) -> Report | None:
        """What the experts changed, in the piece that ends the last choice, if it was asked for."""
        return _report_in(self.eft)


def _report_in(eft: _Object | None) -> Report | None:
    try:
        return Report.model_validate((eft or {}).get("report"))
    except ValidationError:
        return None


class _Pieces(_Result):
    choices: _List[Piece]


# Models


class ModelCard(_Result):
    """One name that a server answers to.

    Attributes:
        id: The name.
        kind: The family itself, one of its aliases, or a single member; None where the server does not say.
        weights: The weights that apply when a request gives none.
        scale: The scale that applies when a request gives none.
        amplify: The factor on the up-scaling delta that applies when a request gives none.
        filter: The filter that applies when a request gives none.
        bounds: What a request may ask for: ``{"weights": {expert: {"min", "max"}}, "scale": {"min", "max"},
            "amplify": …, "coefficients": … or None, "total": number}``; None where it takes no weights.
        members: Of the family itself, ``{name: {"kind", "reference", "description"}}``; None of any other.
        vocabulary: Of the family itself, the number of token ids that all members share; None of any other.
        description: The operator's words.
        max_model_len: The context, in tokens.
    """

    id: _Word
    kind: Kind | None = None
    weights: Mapping[str, float] = Field(default_factory=dict)
    scale: float = 1.0
    amplify: float = 1.0
    filter: _Object | None = None
    bounds: _Object | None = None
    members: _Object | None = None
    vocabulary: _Optional[_Whole] = None
    description: str = ""
    max_model_len: _Optional[_Whole] = None


def _card(card: Any) -> Any:
    """A model's JSON in the form of ModelCard: what applies is in the server's `eft`, and only there."""
    if not isinstance(card, dict):
        return card
    eft = {} if card.get("eft") is None else card["eft"]
    if not isinstance(eft, dict):
        raise ValueError("eft should be an object")
    return {**eft, "id": card.get("id"), "max_model_len": card.get("max_model_len")}


class _Models(_Result):
    data: Annotated[
        _List[Annotated[ModelCard, BeforeValidator(_card)]],
        BeforeValidator(lambda value: [] if value is None else value),
    ]


class _Range(_Result):
    min: float = -math.inf
    max: float = math.inf


class _Bounds(_Result):
    """What a card's `bounds` say."""

    weights: Mapping[str, _Range] = Field(default_factory=dict)
    scale: _Range = _Range()
    amplify: _Range = _Range()
    total: float | None = None


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One expert: the weight that it has when a request gives none, and the ones that a request may give.

    Its reference is the member that it was fine-tuned from; None from a server that does not say.
    """

    name: str
    weight: float
    min: float
    max: float
    reference: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Behaviours:
    """The behaviours that a server offers; as text, and in a notebook, a table.

    Attributes:
        model: The name of the composite; None from a server that has none.
        experts: The experts, with the composite's weights and their bounds.
        scale: The composite's scale.
        scale_bounds: The least and the greatest that a request may ask for.
        amplify: The composite's factor on the up-scaling delta.
        amplify_bounds: The least and the greatest that a request may ask for.
        total: The greatest ``scale · Σ|w|``; None where there is no bound.
        aliases: Names that stand for other weights.
        members: Names of single members.
        vocabulary: The number of token ids that all members share; None from a server that does not say.
    """

    model: str | None
    experts: tuple[Expert, ...]
    scale: float
    scale_bounds: tuple[float, float]
    amplify: float
    amplify_bounds: tuple[float, float]
    total: float | None
    aliases: tuple[ModelCard, ...]
    members: tuple[ModelCard, ...]
    vocabulary: int | None = None

    def __getitem__(self, name: str) -> Expert:
        """The expert of this name."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        raise KeyError(f"{name!r}; known: {', '.join(expert.name for expert in self.experts) or 'none'}")

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("name", "what", "weights", "allowed", "description")]
        if self.model is not None:
            least, greatest = self.scale_bounds
            total = "" if self.total is None else f"; scale · Σ|w| to {self.total:g}"
            allowed = f"scale {least:g} to {greatest:g}{total}"
            defaults = {expert.name: expert.weight for expert in self.experts}
            rows.append((self.model, "composite", _weights(defaults, self.scale), allowed, ""))
        for expert in self.experts:
            bounds = f"{expert.min:g} to {expert.max:g}"
            rows.append((expert.name, "expert", f"{expert.weight:g}", bounds, ""))
        for alias in self.aliases:
            rows.append((alias.id, "alias", _weights(alias.weights, alias.scale), "", alias.description))
        for member in self.members:
            rows.append((member.id, "member alone", "", "", member.description))
        return rows

    @override
    def __repr__(self) -> str:
        rows = [[shortened(cell, SHOWN_CHARS) for cell in row] for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = ([escape(printable(cell)) for cell in row] for row in self._rows())
        table = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
        for row in rows:
            table += "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        return f"<table>{table}</table>"


# Scores


class Statistics(_Result):
    """What the whole distribution that predicts each token of a completion is like.

    Attributes:
        entropy: In nats.
        sum_of_squares: The sum of the squared probabilities of all tokens.
        log_rest: log(1 − p), where p is the likeliest token's probability; −inf where no other is possible.
    """

    entropy: _List[float]
    sum_of_squares: _List[float]
    log_rest: _List[_Logprob]


class MemberScores(_Result):
    """What one model gives a completion, a number for each of its tokens.

    Attributes:
        logprobs: log-probabilities; −inf for a token of probability 0.
        total: Their sum.
        ranks: The rank of each token, 1 = most likely.
        top_logprobs: the log-probability of the likeliest token in the same place.
        statistics: What the whole distributions are like, if that was asked for.
    """

    logprobs: _List[_Logprob]
    total: _Logprob
    ranks: _List[int]
    top_logprobs: _List[_Logprob]
    statistics: Statistics | None = None

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.total:.4g} over {len(self.logprobs)} tokens>"


class Reward(_Result):
    """An expert's implicit reward, log π_expert − log π_reference, for each token, and its sum.

    A number that is not finite, where either gives a token no probability at all, is NaN.
    """

    logprobs: _List[_Difference]
    total: _Difference

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.total:.4g} over {len(self.logprobs)} tokens>"


class LayerActivations(_Result):
    """The states of one layer of one member.

    Attributes:
        shape: (C, H) for a completion of C tokens, or (H,) where they are pooled.
        values: The numbers, row by row.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    shape: _List[int]
    values: Annotated[_Floats, PlainValidator(_floats), Field(validation_alias="data")]

    @model_validator(mode="after")
    def _has_its_shape(self) -> Self:
        if math.prod(self.shape) != len(self.values):
            raise ValueError(f"{len(self.values)} numbers are none of shape {self.shape}")
        return self

    def array(self) -> Any:
        """The same as an array of NumPy, which has to be installed."""
        import numpy as np

        return np.frombuffer(self.values, dtype=np.float32).reshape(self.shape)

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}>"


class ScoredItem(_Result):
    """The scores of one item.

    Attributes:
        index: Its place among those asked for.
        token_ids: The completion's tokens.
        tokens: Their texts.
        composite: The scores under the weights asked for.
        members: The scores under each single member.
        rewards: The implicit reward by expert.
        activations: The states by member and layer, if they were asked for.
    """

    index: int
    token_ids: _List[int]
    tokens: _List[str]
    composite: MemberScores
    members: Mapping[str, MemberScores] = Field(default_factory=dict)
    rewards: Mapping[str, Reward] = Field(default_factory=dict)
    activations: Mapping[str, Mapping[_Whole, LayerActivations]] = Field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """The exponential of the composite's mean negative log-probability of a token."""
        mean = -self.composite.total / max(1, len(self.token_ids))
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf

    @override
    def __repr__(self) -> str:
        rewards = ", ".join(f"{shortened(n, 40)} {r.total:.4g}" for n, r in self.rewards.items())
        shown = f"; rewards: {rewards}" if rewards else ""
        return f"<ScoredItem {self.index}: {_quoted(''.join(self.tokens))} {self.composite.total:.4g}{shown}>"


class ScoreResult(_Answer):
    """The scores of a request's items, in their order.

    Attributes:
        items: One for each item asked for.
        model: The name that scored.
        usage: Prompt tokens, if the server counts them.
        eft: The behaviour that was applied, complete.
        id: The server's name for the answer.
        raw: The server's JSON, whole.
    """

    model_config = ConfigDict(validate_by_name=True)

    items: Annotated[_List[ScoredItem], AfterValidator(_by_index)] = Field(validation_alias="data")

    def __getitem__(self, index: int) -> ScoredItem:
        """The item at this place."""
        return self.items[index]

    @override
    def __iter__(self) -> Iterator[ScoredItem]:  # type: ignore[override] # the items, and not pydantic's fields
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @override
    def __repr__(self) -> str:
        lines = "".join(f"\n  {item!r}" for item in self.items[:10])
        more = f"\n  … and {len(self.items) - 10} more" if len(self.items) > 10 else ""
        return f"<ScoreResult of {shortened(self.model, 80)}{lines}{more}>"


# Explanations


class Likely(_Result):
    """A token with its log-probability somewhere; −inf if it is impossible there.

    Attributes:
        id: Its id.
        text: Its text; U+FFFD stands for a part of a character.
        bytes: Its bytes.
        special: Whether it controls a model, such as one that ends a turn.
        logprob: The log-probability.
    """

    id: int
    text: _Said = ""
    bytes: _Bytes = b""
    special: bool = False
    logprob: _Logprob


class MemberView(_Result):
    """What a member by itself gives a token: log-probability and rank, and the token that it would rather have said."""

    logprob: _Logprob
    rank: int
    top: Likely


class WithoutExpert(Likely):
    """The likeliest token if an expert's weight were 0.

    Attributes:
        token_logprob: The log-probability of the token that is there, without the expert.
        changed: Whether the likeliest is another than the composite's.
    """

    token_logprob: _Logprob
    changed: bool


class Contributions(_Result):
    """What adds up to a token's logit, in nats; −inf where something makes it impossible.

    Attributes:
        base: The base's part.
        experts: Each expert's part, scale · weight · (log π_expert − log π_reference).
        amplify: The part of an amplification beyond 1.
        filter: The filter's part.
        members: Every member's part, in place of base and experts, for a single member or for coefficients.
    """

    base: _Logprob = 0.0
    experts: Mapping[str, _Logprob] = Field(default_factory=dict)
    amplify: _Logprob = 0.0
    filter: _Logprob = 0.0
    members: Mapping[str, _Logprob] = Field(default_factory=dict)

    @property
    def total(self) -> float:
        """Their sum: the token's log-probability and a constant of its place."""
        return sum([self.base, *self.experts.values(), *self.members.values(), self.amplify, self.filter])


class LikelyToken(Likely):
    """One of the composite's likeliest tokens.

    Attributes:
        sampled_logprob: Its log-probability after temperature, min_p, top_k and top_p: −inf if it cannot be sampled.
        members: Its log-probability under each member.
        contributions: What adds up to its logit.
    """

    sampled_logprob: _Logprob
    members: Mapping[str, _Logprob]
    contributions: Contributions


class ExplainedToken(Likely):
    """One token of a completion.

    Attributes:
        index: Its place in the completion.
        sampled_logprob: As in `LikelyToken`.
        rank: 1 = most likely.
        entropy: Of the composite, in nats.
        kl: The Kullback–Leibler divergence of the composite from the base, in nats.
        rewards: Each expert's implicit reward.
        members: What each member by itself says.
        contributions: What adds up to its logit.
        constant: Their sum less the log-probability.
        without: What would be likely without an expert, for each one with a weight.
        top: The composite's likeliest tokens.
    """

    index: int
    sampled_logprob: _Logprob
    rank: int
    entropy: float
    kl: _Difference
    rewards: Mapping[str, _Difference]
    members: Mapping[str, MemberView]
    contributions: Contributions
    constant: _Difference
    without: Mapping[str, WithoutExpert]
    top: _List[LikelyToken]

    @override
    def __repr__(self) -> str:
        pushes = ", ".join(f"{shortened(n, 40)} {v:+.2f}" for n, v in self.contributions.experts.items())
        changed = [shortened(name, 40) for name, other in self.without.items() if other.changed]
        words = [
            f"{_quoted(self.text)} {self.logprob:.2f}",
            pushes,
            *(f"changed by {name}" for name in changed),
        ]
        return f"<{'; '.join(filter(None, words))}>"


class Explanation(_Answer):
    """A completion, explained token by token.

    Attributes:
        tokens: The explained tokens.
        text: The completion's text, without special tokens.
        token_ids: All tokens of the completion.
        finish_reason: Why it ended, if the request did not bring it.
        summary: The server's JSON: the share of tokens that the experts changed, mean divergence and entropy, totals.
        raw: The server's JSON, whole.
    """

    tokens: _List[ExplainedToken]
    text: _Said
    token_ids: _List[int]
    finish_reason: _Optional[_Word] = None
    summary: _Object = Field(default_factory=dict)

    @override
    def __repr__(self) -> str:
        lines = "".join(f"\n  {token!r}" for token in self.tokens[:20])
        more = f"\n  … and {len(self.tokens) - 20} more" if len(self.tokens) > 20 else ""
        return f"<Explanation of {_quoted(self.text)} by {shortened(self.model, 80)}{lines}{more}>"


# From bytes to results


def parsed(data: bytes | str) -> Any:
    """The value of a server's JSON; halves of characters are accepted, and so are numbers that are not finite.

    Raises:
        ValueError: It is not JSON, or nests too deeply.
    """
    try:
        return from_json(data, cache_strings="keys")
    except ValueError as error:
        if "hex escape" not in str(error):
            raise
    return json.loads(data)


def json_object(data: bytes | str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        BadAnswer: It is not JSON, or nests too deeply, or is no object.
    """
    try:
        value = parsed(data)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the server's answer is not JSON ({error}): {_excerpt(data)}") from None
    if not isinstance(value, dict):
        raise BadAnswer(f"the server's answer is no JSON object: {_excerpt(data)}")
    return value


def chat_result(raw: Mapping[str, Any]) -> ChatResult:
    """The answer to a chat.

    Raises:
        BadAnswer: It has another form.
    """
    return _checked(ChatResult, {**raw, "choices": _flat(raw.get("choices"), _chat_choice), "raw": raw})


def text_result(raw: Mapping[str, Any]) -> TextResult:
    """The answer to a completion.

    Raises:
        BadAnswer: It has another form.
    """
    return _checked(TextResult, {**raw, "choices": _flat(raw.get("choices"), _text_choice), "raw": raw})


def pieces_in(raw: Mapping[str, Any]) -> list[Piece]:
    """The pieces in one event of a chat's stream: one for each choice that it adds to, or one without text.

    Raises:
        ServerAnswered: The event is an error.
        BadAnswer: It has another form.
    """
    if raw.get("error"):
        raise error_in(raw, status=None)
    beside = {"eft": raw.get("eft"), "usage": raw.get("usage")}

    def delta(choice: dict[str, Any]) -> dict[str, Any]:
        return {**choice, **beside, "text": _content(choice.get("delta"))}

    choices = _flat(raw.get("choices"), delta)
    if choices not in (None, []):
        return list(_checked(_Pieces, {"choices": choices}).choices)
    piece = _checked(Piece, beside)
    return [piece] if piece.eft or piece.usage else []


def score_result(raw: Mapping[str, Any], asked: int) -> ScoreResult:
    """The scores of `asked` items.

    Raises:
        BadAnswer: They have another form, or are of other items.
    """
    if raw.get("object") != "eft.score":
        raise BadAnswer(
            f"the server's answer is no scores: object is {raw.get('object')!r:.80}, expected 'eft.score'"
        )
    result = _checked(ScoreResult, {**raw, "raw": raw})
    if [item.index for item in result] != list(range(asked)):
        raise BadAnswer(f"{asked} items were to be scored, and the answer has {len(result)}, or others")
    for item in result:
        counts = {len(item.token_ids), len(item.tokens), len(item.composite.logprobs)}
        if len(counts) != 1:
            raise BadAnswer(f"item {item.index} has scores for another number of tokens than it has")
    return result


def explanation(raw: Mapping[str, Any]) -> Explanation:
    """An explanation.

    Raises:
        BadAnswer: It has another form.
    """
    if raw.get("object") != "eft.explanation":
        raise BadAnswer(
            f"the server's answer is no explanation: object is {raw.get('object')!r:.80}, expected 'eft.explanation'"
        )
    completion = raw.get("completion")
    return _checked(Explanation, {**raw, **(completion if isinstance(completion, dict) else {}), "raw": raw})


def model_cards(raw: Mapping[str, Any]) -> list[ModelCard]:
    """The models that a server lists.

    Raises:
        BadAnswer: The list has another form.
    """
    return list(_checked(_Models, raw).data)


def behaviours_in(cards: list[ModelCard]) -> Behaviours:
    """The behaviours that a server's models offer.

    Raises:
        BadAnswer: A bound has another form.
    """
    composite = next((card for card in cards if card.kind == "composite"), None)
    bounds = _checked(_Bounds, (composite and composite.bounds) or {})
    weights = composite.weights if composite else {}
    limits = {name: bounds.weights.get(name, _Range()) for name in weights}
    return Behaviours(
        model=composite.id if composite else None,
        experts=tuple(
            Expert(
                name=name,
                weight=weight,
                min=limits[name].min,
                max=limits[name].max,
                reference=_reference((composite and composite.members) or {}, name),
            )
            for name, weight in weights.items()
        ),
        scale=composite.scale if composite else 1.0,
        scale_bounds=(bounds.scale.min, bounds.scale.max),
        amplify=composite.amplify if composite else 1.0,
        amplify_bounds=(bounds.amplify.min, bounds.amplify.max),
        total=bounds.total,
        aliases=tuple(card for card in cards if card.kind == "alias"),
        members=tuple(card for card in cards if card.kind == "member"),
        vocabulary=composite.vocabulary if composite else None,
    )


def _reference(members: Mapping[str, Any], expert: str) -> str | None:
    card = members.get(expert)
    reference = card.get("reference") if isinstance(card, Mapping) else None
    return reference if isinstance(reference, str) else None


def _flat(choices: Any, read: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The choices' JSON in the form of Choice and Piece; an index that cannot be read is the place among them."""
    if not isinstance(choices, list):
        return choices
    return [
        {**read(choice), "index": _index(choice.get("index"), place)} if isinstance(choice, dict) else choice
        for place, choice in enumerate(choices)
    ]


def _index(value: Any, place: int) -> int:
    index = _whole(value)
    return index if type(index) is int else place


def _chat_choice(choice: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "text": _content(choice["message"])} if "message" in choice else {}


def _text_choice(choice: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "message": None}


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else None


def _checked(model: type[_T], raw: Any) -> _T:
    try:
        return model.model_validate(raw, context=_FROM_SERVER)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = shortened(".".join(map(str, first["loc"])), _EXCERPT_CHARS) or "the whole of it"
        raise BadAnswer(
            f"the server's answer has another form than the protocol: {place}: {first['msg']}"
        ) from None


def _excerpt(data: bytes | str) -> str:
    head = data[: _EXCERPT_CHARS * 4]
    text = head.decode("utf-8", "replace") if isinstance(head, bytes) else head
    return shortened(text, _EXCERPT_CHARS) or "(nothing)"


def _weights(weights: Mapping[str, float], scale: float) -> str:
    shown = " ".join(f"{name}={weight:g}" for name, weight in weights.items())
    return shown if scale == 1 else f"{shown} scale={scale:g}"


def _quoted(text: str) -> str:
    return f"'{shortened(text, SHOWN_CHARS)}'"
