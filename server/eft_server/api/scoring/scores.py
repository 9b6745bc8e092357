"""Scores: from a request's items to engine requests, and from their outputs to the answer.

One pass over a text serves every vector of coefficients that a request needs: the composite's and those of members.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.errors import PROMPT
from eft_server.api.requests.schemas import ScoreRequest
from eft_server.api.scoring.activations import (
    LayerActivations,
    asked_of,
    bytes_of,
    shown_activations,
)
from eft_server.api.scoring.texts import (
    Text,
    finite,
    members_named,
    read_text,
    refusal,
    require_scoring,
    require_switches,
    score_text,
    total,
)
from eft_server.api.serving.handlers import failure
from eft_server.api.serving.service import Service, resolved_fields
from eft_server.behaviour.coefficients import alone
from eft_server.behaviour.resolve import Resolved
from eft_server.engine.activations import ActivationError, Activations
from eft_server.engine.message import STATISTICS, Manifest, Scored, Scoring, activations_of
from eft_server.family.file import ServerConfig

__all__ = ["ScoreAnswer", "score"]

_AT_ONCE = 16
"""Texts of one request that are in the engine at a time: other requests get their turn in between."""

_EXAMPLE: dict[str, Any] = {
    "object": "eft.score",
    "id": "score-0",
    "created": 1790000000,
    "model": "demo",
    "eft": {"model": "demo", "weights": {"helpful": 1.0}, "scale": 1.0, "amplify": 1.0, "filter": None},
    "data": [
        {
            "object": "eft.score.item",
            "index": 0,
            "token_ids": [412, 57],
            "tokens": ["To", " make"],
            "bytes": [[84, 111], [32, 109, 97, 107, 101]],
            "composite": {
                "logprobs": [-0.5, -0.25],
                "total": -0.75,
                "ranks": [1, 1],
                "top_logprobs": [-0.5, -0.25],
            },
            "members": {
                "helpful": {
                    "logprobs": [-1.0, -0.5],
                    "total": -1.5,
                    "ranks": [2, 1],
                    "top_logprobs": [-0.75, -0.5],
                }
            },
            "rewards": {"helpful": {"logprobs": [2.0, 0.5], "total": 2.5}},
        }
    ],
    "usage": {"prompt_tokens": 31, "completion_tokens": 0, "total_tokens": 31},
}


class ColumnStatistics(BaseModel):
    """What the whole distribution that predicts each token is like, however likely the token itself is."""

    entropy: list[float] = Field(description="In nats.")
    sum_of_squares: list[float] = Field(description="The sum of the squared probabilities of all tokens.")
    log_rest: list[float | None] = Field(
        description="log(1 − p), where p is the probability of the likeliest token; null is minus infinity."
    )


class Column(BaseModel):
    """The scores of each token under one combination of members. Null is minus infinity: an impossible token."""

    logprobs: list[float | None]
    total: float | None
    ranks: list[int]
    top_logprobs: list[float]


class MeasuredColumn(Column):
    """The same with the statistics for which a request asks."""

    statistics: ColumnStatistics


class Reward(BaseModel):
    """An expert's implicit reward, log π_expert − log π_reference, for each token."""

    logprobs: list[float | None]
    total: float | None


class ScoredItem(BaseModel):
    """The scores of one completion."""

    index: int
    object: Literal["eft.score.item"] = "eft.score.item"
    token_ids: list[int]
    tokens: list[str] = Field(description="As text; U+FFFD stands for a part of a character.")
    bytes: list[list[int]] = Field(description="The bytes of each token, from 0 to 255.")
    composite: MeasuredColumn | Column
    members: dict[str, MeasuredColumn | Column]
    rewards: dict[str, Reward]


class ReadItem(ScoredItem):
    """The same with the activations for which a request asks."""

    activations: dict[str, dict[str, LayerActivations]] = Field(
        description="By member and by layer: the state after the member has read each token of the completion."
    )


class ScoreUsage(BaseModel):
    """Number of tokens in prompts and completions; nothing is generated."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class ScoreAnswer(BaseModel):
    """The scores of a request's completions, in the order of its items."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    object: Literal["eft.score"] = "eft.score"
    id: str
    created: int
    model: str
    eft: dict[str, Any] = Field(description="The applied behaviour, with defaults filled in.")
    data: list[ReadItem | ScoredItem]
    usage: ScoreUsage


@dataclass(frozen=True)
class _Columns:
    """The distinct vectors that a request needs, and where each column of the answer is among them.

    Attributes:
        vectors: `Coefficients.numbers`; the composite's is the first.
        counting: the places of the members that contribute to any of them.
        members: for each member in the answer, its place among the vectors.
        rewards: for each expert in the answer, its place and its reference's.
    """

    vectors: tuple[tuple[float, ...], ...]
    counting: frozenset[int]
    members: dict[str, int]
    rewards: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, config: ServerConfig, resolved: Resolved, names: Sequence[str]) -> "_Columns":
        experts = {name: config.family.reference_of(name) for name in names if name in config.experts}
        needed = dict.fromkeys((*names, *experts.values()))
        vector_of = {name: alone(config, name).numbers for name in needed}
        vectors = tuple(dict.fromkeys((resolved.coefficients.numbers, *vector_of.values())))
        return cls(
            vectors,
            resolved.coefficients.counting | {config.family[name].place for name in needed},
            {name: vectors.index(vector_of[name]) for name in names},
            {
                name: (vectors.index(vector_of[name]), vectors.index(vector_of[ref]))
                for name, ref in experts.items()
            },
        )

    def shown(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The fields of an item in the answer, from the scores under each vector."""
        return {
            "composite": _column(scored[0]),
            "members": {name: _column(scored[place]) for name, place in self.members.items()},
            "rewards": {name: _reward(scored[e], scored[r]) for name, (e, r) in self.rewards.items()},
        }


async def score(service: Service, request: ScoreRequest, resolved: Resolved) -> ScoreAnswer:
    """Score every item of a request, some at a time.

    Raises:
        ApiError: An item cannot be scored; then none is.
        GenerationError: The engine failed on an item.
    """
    require_scoring(service)
    require_switches(service, request.chat_template_kwargs, request.items)
    plan = _Plan.of(service, request, resolved)
    texts = [await _read(service, request, plan, place) for place in range(len(request.items))]
    _check_amount(service.config, plan.columns, texts, request.statistics)
    async with plan.room(service, texts):
        found = await _run(service, request, plan, texts)
        data = await asyncio.to_thread(_items, service, plan, texts, found)
    tokens = sum(text.length for text in texts)
    usage = ScoreUsage(prompt_tokens=tokens, total_tokens=tokens)
    return ScoreAnswer(
        id=request.request_id,
        created=int(time.time()),
        model=resolved.model,
        eft=resolved_fields(resolved),
        data=data,
        usage=usage,
    )


@dataclass(frozen=True)
class _Plan:
    """What the engine is asked of every text.

    Attributes:
        columns: the vectors under which it is scored.
        statistics: whether the rows are measured.
        activations: the states that are sent back, if any are.
        manifest: the family's, as the engine has it.
    """

    columns: _Columns
    statistics: bool
    activations: Activations | None
    manifest: Manifest

    @classmethod
    def of(cls, service: Service, request: ScoreRequest, resolved: Resolved) -> "_Plan":
        config = service.config
        manifest = Manifest.from_hf(service.engine.model_config.hf_config)
        asked = request.activations
        return cls(
            _Columns.of(config, resolved, members_named(request.members, config, "members")),
            request.statistics,
            None if asked is None else asked_of(asked, config, manifest),
            manifest,
        )

    @property
    def counting(self) -> frozenset[int]:
        """The places of the members that contribute to any column, or whose states are asked for."""
        return self.columns.counting | set(self.activations.members if self.activations else ())

    def scoring(self, text: Text) -> Scoring:
        """What the engine is asked of a text."""
        return Scoring(
            len(text.prompt) - 1,
            tuple(text.completion),
            self.columns.vectors,
            statistics=self.statistics,
            activations=self.activations,
        )

    def room(self, service: Service, texts: Sequence[Text]) -> AbstractAsyncContextManager[None]:
        """Hold as many bytes as the activations take, of those that requests may have together.

        Raises:
            ApiError: They are more than one request may have.
        """
        if self.activations is None:
            return nullcontext()
        size = bytes_of(self.activations, texts, self.manifest, service.config)
        return service.activation_room.take("", size)


@dataclass(frozen=True)
class _Found:
    """What the engine gave for a text: the scores under each vector, and the activations by member and layer."""

    scored: tuple[Scored, ...]
    activations: Mapping[int, Mapping[int, np.ndarray]]


def _check_amount(config: ServerConfig, columns: _Columns, texts: Iterable[Text], statistics: bool) -> None:
    width, most = len(columns.vectors), config.server.max_scores
    tokens = sum(len(text.completion) for text in texts)
    numbers = 1 + len(STATISTICS) * statistics
    if tokens * width * numbers > most:
        each = f", each with {numbers - 1} statistics," if statistics else ""
        fewer = (
            "do without statistics, or ask for fewer members" if statistics else "or ask for fewer members"
        )
        raise refusal(
            "items",
            f"{tokens} tokens under {width} combinations of members{each} are {tokens * width * numbers} scores; "
            f"allowed: up to {most}; send fewer items at a time, {fewer}",
        )


async def _read(service: Service, request: ScoreRequest, plan: _Plan, place: int) -> Text:
    """Render and tokenize an item, and check that the engine has room for it."""
    item, switches = request.items[place], request.chat_template_kwargs
    try:
        return await read_text(service, item, switches, plan.counting, whole=plan.activations is not None)
    except ApiError as error:
        param = ".".join(filter(None, (f"items.{place}", error.param)))
        named = error.param is not None and str(error).startswith(error.param)
        message = f"items.{place}.{error}" if named else f"items.{place}: {error}"
        raise ApiError(message, status=error.status, param=param, code=error.code) from None


async def _run(service: Service, request: ScoreRequest, plan: _Plan, texts: Sequence[Text]) -> list[_Found]:
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(index: int, text: Text) -> _Found:
        async with places:
            try:
                return await _ask(service, request, plan, f"{request.request_id}-{index}", text)
            except ApiError as error:
                if error.param != PROMPT:
                    raise
                raise ApiError(f"items.{index}: {error}", param=f"items.{index}", code=error.code) from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, text)) for index, text in enumerate(texts)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask(service: Service, request: ScoreRequest, plan: _Plan, request_id: str, text: Text) -> _Found:
    """Run the engine on a text.

    Raises:
        ApiError: A member's model does not have the activations that are asked for.
        GenerationError: The engine failed, or a number is not finite.
    """
    scoring = plan.scoring(text)
    output, found = await score_text(service, request_id, request.cache_salt, scoring, text)
    if scoring.activations is None:
        return _Found(found, {})
    try:
        states = activations_of(output, scoring, plan.manifest.widths)
    except ActivationError as error:
        raise refusal("activations", str(error)) from None
    if not all(np.isfinite(rows).all() for own in states.values() for rows in own.values()):
        raise failure(request_id)
    return _Found(found, states)


def _items(
    service: Service, plan: _Plan, texts: Sequence[Text], found: Sequence[_Found]
) -> list[ReadItem | ScoredItem]:
    """The answer's items, built outside the event loop, since they may hold megabytes of numbers."""
    return [
        _item(service, plan, index, text, own)
        for index, (text, own) in enumerate(zip(texts, found, strict=True))
    ]


def _item(service: Service, plan: _Plan, index: int, text: Text, found: _Found) -> ReadItem | ScoredItem:
    item = ScoredItem(
        index=index,
        token_ids=text.completion,
        tokens=[service.token_bytes.text(token) for token in text.completion],
        bytes=[list(service.token_bytes.of(token)) for token in text.completion],
        **plan.columns.shown(found.scored),
    )
    if plan.activations is None:
        return item
    names = service.config.family.names
    activations = shown_activations(plan.activations, found.activations, names)
    return ReadItem(**dict(item), activations=activations)


def _column(found: Scored) -> Column:
    column = Column(
        logprobs=[finite(value) for value in found.logprobs],
        total=total(found.logprobs),
        ranks=list(found.ranks),
        top_logprobs=list(found.likeliest),
    )
    if (own := found.statistics) is None:
        return column
    statistics = ColumnStatistics(
        entropy=list(own.entropy),
        sum_of_squares=list(own.sum_of_squares),
        log_rest=[finite(value) for value in own.log_rest],
    )
    return MeasuredColumn(**dict(column), statistics=statistics)


def _reward(expert: Scored, reference: Scored) -> Reward:
    gains = [own - other for own, other in zip(expert.logprobs, reference.logprobs, strict=True)]
    return Reward(logprobs=[finite(value) for value in gains], total=total(gains))
