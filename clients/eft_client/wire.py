"""From bytes to results: what servers send, bounded by the connection and checked here."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import from_json

from eft_client.errors import BadAnswer, ServerAnswered, answered
from eft_client.halves import mended
from eft_client.printable import shortened
from eft_client.results import (
    Behaviours,
    ChatResult,
    Choice,
    Expert,
    Kind,
    MemberScores,
    ModelCard,
    Piece,
    Reward,
    ScoredItem,
    ScoreResult,
    TextResult,
    Usage,
)

__all__ = [
    "behaviours_in",
    "chat_result",
    "error_in",
    "json_object",
    "model_cards",
    "parsed",
    "pieces_in",
    "score_result",
    "text_result",
]

_SHOWN_CHARS = 200
_MAX_DIGITS = 18
_STATUS_OF_TYPE = {"invalid_request_error": 400, "rate_limit_error": 429, "timeout_error": 504}


class _Wire(BaseModel):
    """Strict in what an answer is, lenient in what it does not know and in what only goes with an answer."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """As in OpenAI's own client, null in place of what may be absent says no more than its absence."""
        if not isinstance(given, dict):
            return given
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {key: value for key, value in given.items() if value is not None or key in required}


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


def _said(value: Any) -> str:
    """What text, null, or a list of parts of which some are text says."""
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


def _logprob(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number, or null")
    return -math.inf if value is None else value


_T = TypeVar("_T", bound=_Wire)
_V = TypeVar("_V")
Object = dict[str, Any]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
# As it came: what ends in half a character is no str to pydantic.
Said = Annotated[Any, BeforeValidator(_said)]
Word = Annotated[str, BeforeValidator(_word)]
Whole = Annotated[int, BeforeValidator(_whole)]
# What only goes with an answer is left out where it has another form: the answer is of use without it.
Told = Annotated[_V | None, WrapValidator(_or_none)]
Finite = Annotated[Object, AfterValidator(_finite)]
# On the wire a log-probability of −inf is null; a reward that is not finite, too, and says less.
Logprob = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_logprob)]
Difference = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(lambda value: math.nan if value is None else value)
]


class _Usage(_Wire):
    prompt_tokens: Whole = 0
    completion_tokens: Whole = 0
    total_tokens: Whole = 0

    def usage(self) -> Usage:
        return Usage(**self.model_dump())


class _Message(_Wire):
    content: Said = ""


class _Placed(_Wire):
    """A choice, or a piece of one; where its index cannot be read, it is the one of its place among them."""

    index: Told[Whole] = None
    finish_reason: Told[Word] = None
    logprobs: Told[Finite] = None

    def at(self, place: int) -> dict[str, Any]:
        index = place if self.index is None else self.index
        return {"index": index, "finish_reason": self.finish_reason, "logprobs": self.logprobs}


class _ChatChoice(_Placed):
    message: Annotated[Object, BeforeValidator(lambda value: {} if value is None else value)]

    def choice(self, place: int) -> Choice:
        text = mended(_checked(_Message, self.message).content)
        return Choice(text=text, message=self.message, **self.at(place))


class _TextChoice(_Placed):
    text: Said

    def choice(self, place: int) -> Choice:
        return Choice(text=mended(self.text), **self.at(place))


class _Delta(_Placed):
    delta: Object = Field(default_factory=dict)


class _Head(_Wire):
    """What answers of every kind have in common."""

    id: Told[Word] = None
    model: Told[Word] = None
    usage: Told[_Usage] = None
    eft: Told[Finite] = None

    def common(self) -> dict[str, Any]:
        usage = self.usage and self.usage.usage()
        return {"id": self.id, "model": self.model or "", "usage": usage, "eft": self.eft}


class _Chat(_Head):
    choices: list[_ChatChoice] = Field(min_length=1)


class _Completion(_Head):
    choices: list[_TextChoice] = Field(min_length=1)


class _Chunk(_Head):
    choices: list[_Delta] = Field(default_factory=list)


class _Behaviour(_Wire):
    kind: Kind | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    scale: float = 1.0
    amplify: float = 1.0
    filter: Object | None = None
    bounds: Object | None = None
    description: Text = ""


class _Card(_Wire):
    id: Word
    max_model_len: Told[Whole] = None
    eft: _Behaviour = Field(default_factory=_Behaviour)

    def card(self) -> ModelCard:
        return ModelCard(id=self.id, max_model_len=self.max_model_len, **self.eft.model_dump())


class _Models(_Wire):
    data: Annotated[list[_Card], BeforeValidator(lambda value: [] if value is None else value)]


class _Range(_Wire):
    min: float = -math.inf
    max: float = math.inf


class _Bounds(_Wire):
    weights: dict[str, _Range] = Field(default_factory=dict)
    scale: _Range = Field(default_factory=_Range)
    amplify: _Range = Field(default_factory=_Range)
    total: float | None = None


class _Scores(_Wire):
    logprobs: list[Logprob]
    total: Logprob
    ranks: list[int]
    top_logprobs: list[Logprob]

    def scores(self) -> MemberScores:
        return MemberScores(
            logprobs=tuple(self.logprobs),
            total=self.total,
            ranks=tuple(self.ranks),
            top_logprobs=tuple(self.top_logprobs),
        )


class _Reward(_Wire):
    logprobs: list[Difference]
    total: Difference

    def reward(self) -> Reward:
        return Reward(logprobs=tuple(self.logprobs), total=self.total)


class _Scored(_Wire):
    index: int
    token_ids: list[int]
    tokens: list[str]
    composite: _Scores
    members: dict[str, _Scores] = Field(default_factory=dict)
    rewards: dict[str, _Reward] = Field(default_factory=dict)

    def item(self) -> ScoredItem:
        return ScoredItem(
            index=self.index,
            token_ids=tuple(self.token_ids),
            tokens=tuple(self.tokens),
            composite=self.composite.scores(),
            members={name: scores.scores() for name, scores in self.members.items()},
            rewards={name: reward.reward() for name, reward in self.rewards.items()},
        )


class _Score(_Head):
    object: Literal["eft.score"]
    data: list[_Scored]


class _ErrorBody(_Wire):
    message: Text = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def parsed(data: bytes | str) -> Any:
    """What a server's JSON says; halves of characters are taken, as are numbers that are not finite.

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
    answer = _checked(_Chat, raw)
    choices = _in_order(answer.choices)
    return ChatResult(choices=tuple(choices), raw=raw, **answer.common())


def text_result(raw: Mapping[str, Any]) -> TextResult:
    """The answer to a completion.

    Raises:
        BadAnswer: It has another form.
    """
    answer = _checked(_Completion, raw)
    choices = _in_order(answer.choices)
    return TextResult(choices=tuple(choices), raw=raw, **answer.common())


def _in_order(choices: Sequence[_ChatChoice | _TextChoice]) -> list[Choice]:
    read = (choice.choice(place) for place, choice in enumerate(choices))
    return sorted(read, key=lambda choice: choice.index)


def pieces_in(raw: Mapping[str, Any]) -> list[Piece]:
    """The pieces in one event of a chat's stream: one for each choice that it adds to, or one that only tells.

    Raises:
        ServerAnswered: The event is an error.
        BadAnswer: It has another form.
    """
    if raw.get("error"):
        raise error_in(raw, status=None)
    chunk = _checked(_Chunk, raw)
    told: dict[str, Any] = {"eft": chunk.eft, "usage": chunk.usage and chunk.usage.usage()}
    if not chunk.choices:
        return [Piece(text="", **told)] if any(told.values()) else []
    return [
        Piece(text=_checked(_Message, delta.delta).content, delta=delta.delta, **delta.at(place), **told)
        for place, delta in enumerate(chunk.choices)
    ]


def score_result(raw: Mapping[str, Any], asked: int) -> ScoreResult:
    """The scores of `asked` items.

    Raises:
        BadAnswer: They have another form, or are of other items.
    """
    answer = _checked(_Score, raw)
    items = sorted((scored.item() for scored in answer.data), key=lambda item: item.index)
    if [item.index for item in items] != list(range(asked)):
        raise BadAnswer(f"{asked} items were to be scored, and the answer has {len(items)}, or others")
    for item in items:
        counts = {len(item.token_ids), len(item.tokens), len(item.composite.logprobs)}
        if len(counts) != 1:
            raise BadAnswer(f"item {item.index} has scores for another number of tokens than it has")
    return ScoreResult(items=tuple(items), raw=raw, **answer.common())


def model_cards(raw: Mapping[str, Any]) -> list[ModelCard]:
    """The models that a server lists.

    Raises:
        BadAnswer: The list has another form.
    """
    return [card.card() for card in _checked(_Models, raw).data]


def behaviours_in(cards: list[ModelCard]) -> Behaviours:
    """What a server's models can be asked to be.

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
            Expert(name=name, weight=weight, min=limits[name].min, max=limits[name].max)
            for name, weight in weights.items()
        ),
        scale=composite.scale if composite else 1.0,
        scale_bounds=(bounds.scale.min, bounds.scale.max),
        amplify=composite.amplify if composite else 1.0,
        amplify_bounds=(bounds.amplify.min, bounds.amplify.max),
        total=bounds.total,
        aliases=tuple(card for card in cards if card.kind == "alias"),
        members=tuple(card for card in cards if card.kind == "member"),
    )


def error_in(
    raw: Mapping[str, Any],
    *,
    status: int | None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> ServerAnswered:
    """The error that a JSON body tells of, in any of the forms that servers use.

    Args:
        raw: ``{"error": {"message", "type", "param", "code"}}``, or without the outer object, or
            ``{"detail": …}``.
        status: The HTTP status; None for an error in a stream, whose own code or type says.
        request_id: What the server calls the request.
        retry_after_s: How long the server asks to be left alone.
    """
    inner = raw.get("error", raw)
    try:
        body = _ErrorBody.model_validate(inner if isinstance(inner, dict) else {"message": str(inner)})
    except ValidationError:
        body = _ErrorBody(message=str(inner))
    if status is None:
        numeric = body.code if isinstance(body.code, int) and 400 <= body.code < 600 else None
        status = numeric or _STATUS_OF_TYPE.get(body.type or "", 500)
    return answered(
        status,
        body.message or str(raw.get("detail") or f"the server gave no words, but {dict(raw)}"),
        code=None if body.code is None else str(body.code),
        param=body.param,
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def _checked(model: type[_T], raw: Any) -> _T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = shortened(".".join(map(str, first["loc"])), _SHOWN_CHARS) or "the whole of it"
        raise BadAnswer(
            f"the server's answer has another form than the protocol: {place}: {first['msg']}"
        ) from None


def _excerpt(data: bytes | str) -> str:
    head = data[: _SHOWN_CHARS * 4]
    text = head.decode("utf-8", "replace") if isinstance(head, bytes) else head
    return shortened(text, _SHOWN_CHARS) or "(nothing)"
