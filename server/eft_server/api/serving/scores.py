"""Scores: from a request's items to engine requests, and from their outputs to the answer.

One pass over a text serves every vector of coefficients that a request needs: the composite's and those of members.
"""

import asyncio
import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from vllm.inputs import tokens_input
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.errors import PROMPT
from eft_server.api.requests.fields import check_member_prompts
from eft_server.api.requests.reasoning import require_readable
from eft_server.api.requests.schemas import ChatRequest, ScoreItem, ScoreRequest, TextRequest
from eft_server.api.serving.current import current
from eft_server.api.serving.handlers import failure
from eft_server.api.serving.renderer import MEMBER_PROMPTS
from eft_server.api.serving.service import Service, resolved_fields
from eft_server.api.serving.stream import outcome
from eft_server.behaviour.resolve import Resolved
from eft_server.engine.message import Scored, Scoring, scored, scoring_params
from eft_server.errors import shown
from eft_server.family.file import ServerConfig

__all__ = ["ScoreAnswer", "score"]

_AT_ONCE = 16
"""Texts of one request that are in the engine at a time: other requests get their turn in between."""

_DECODED_AT_ONCE = 256


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


class Column(BaseModel):
    """The scores of each token under one combination of members. Null is minus infinity: an impossible token."""

    logprobs: list[float | None]
    total: float | None
    ranks: list[int]
    top_logprobs: list[float]


class Reward(BaseModel):
    """An expert's implicit reward, log π_expert − log π_reference, for each token."""

    logprobs: list[float | None]
    total: float | None


class ScoredItem(BaseModel):
    """The scores of one completion."""

    index: int
    object: Literal["eft.score.item"] = "eft.score.item"
    token_ids: list[int]
    tokens: list[str]
    composite: Column
    members: dict[str, Column]
    rewards: dict[str, Reward]


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
    data: list[ScoredItem]
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
        alone = {name: tuple(float(name == member) for member in config.family.names) for name in needed}
        vectors = tuple(dict.fromkeys((resolved.coefficients.numbers, *alone.values())))
        return cls(
            vectors,
            resolved.coefficients.counting | {config.family[name].place for name in needed},
            {name: vectors.index(alone[name]) for name in names},
            {name: (vectors.index(alone[name]), vectors.index(alone[ref])) for name, ref in experts.items()},
        )

    def shown(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The fields of an item in the answer, from the scores under each vector."""
        return {
            "composite": _column(scored[0]),
            "members": {name: _column(scored[place]) for name, place in self.members.items()},
            "rewards": {name: _reward(scored[e], scored[r]) for name, (e, r) in self.rewards.items()},
        }


@dataclass(frozen=True)
class _Text:
    """One item as token ids.

    Attributes:
        prompt: the longest of the members' prompts.
        own: the per-member prompts, if they differ.
        completion: the tokens to score.
    """

    prompt: list[int]
    own: list[list[int]] | None
    completion: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


async def score(service: Service, request: ScoreRequest, resolved: Resolved) -> ScoreAnswer:
    """Score every item of a request, some at a time.

    Raises:
        ApiError: An item cannot be scored; then none is.
        GenerationError: The engine failed on an item.
    """
    if service.engine.vllm_config.cache_config.kv_sharing_fast_prefill:
        raise ApiError("vLLM's option kv_sharing_fast_prefill skips the rows that scores need.")
    switches = request.chat_template_kwargs
    require_readable(switches, None, service.handlers.template_variables)
    if switches is not None and all(item.messages is None for item in request.items):
        raise _refusal("chat_template_kwargs", "has no effect: no item has messages")
    names = _names(service.config, request.members)
    columns = _Columns.of(service.config, resolved, names)
    texts = [await _read(service, request, columns, place) for place in range(len(request.items))]
    _check_amount(service.config, columns, texts)
    found = await _run(service, request, columns, texts)
    tokenizer = service.engine.renderer.get_tokenizer()
    tokens = [await _tokens(tokenizer, text.completion) for text in texts]
    data = await asyncio.to_thread(_items, columns, texts, tokens, found)
    total = sum(text.length for text in texts)
    usage = ScoreUsage(prompt_tokens=total, total_tokens=total)
    return ScoreAnswer(
        id=request.request_id,
        created=int(time.time()),
        model=resolved.model,
        eft=resolved_fields(resolved),
        data=data,
        usage=usage,
    )


def _names(config: ServerConfig, asked: bool | list[str]) -> tuple[str, ...]:
    if isinstance(asked, bool):
        return config.family.names if asked else ()
    for index, name in enumerate(asked):
        if name not in config.family:
            message = f"unknown member {shown(name)}; known: {', '.join(config.family.names)}"
            raise _refusal(f"members.{index}", message)
    return tuple(dict.fromkeys(asked))


def _check_amount(config: ServerConfig, columns: _Columns, texts: Iterable[_Text]) -> None:
    width, most = len(columns.vectors), config.server.max_scores
    tokens = sum(len(text.completion) for text in texts)
    if tokens * width > most:
        raise _refusal(
            "items",
            f"{tokens} tokens under {width} combinations of members are {tokens * width} scores; allowed: up to "
            f"{most}; send fewer items at a time, or ask for fewer members",
        )


async def _read(service: Service, request: ScoreRequest, columns: _Columns, place: int) -> _Text:
    """Render and tokenize an item, and check that the engine has room for it."""
    item = request.items[place]
    try:
        prompt, own = await _prompt(service, request, columns, item)
        completion = await _completion(service, item)
        text = _Text(prompt, own, completion)
        most = service.engine.model_config.max_model_len
        if text.length > most:
            message = (
                f"a prompt of {len(prompt)} tokens and a completion of {len(completion)} are too long; allowed: "
                f"{most} together"
            )
            raise _refusal("completion", message)
    except ApiError as error:
        param = ".".join(filter(None, (f"items.{place}", error.param)))
        named = error.param is not None and str(error).startswith(error.param)
        message = f"items.{place}.{error}" if named else f"items.{place}: {error}"
        raise ApiError(message, status=error.status, param=param, code=error.code) from None
    return text


async def _prompt(
    service: Service, request: ScoreRequest, columns: _Columns, item: ScoreItem
) -> tuple[list[int], list[list[int]] | None]:
    """The longest of the members' prompts, and all of them where they differ."""
    options, handlers = service.config.server, service.handlers
    current_request = current()
    current_request.counting = columns.counting
    if item.messages is not None:
        body = {
            "messages": item.messages,
            "chat_template_kwargs": request.chat_template_kwargs,
            "max_completion_tokens": 1,
        }
        chat = ChatRequest.read(body, options)
        chat.model = service.config.name
        _, [engine_input] = await outcome(handlers.chat.render_chat_request(chat))
    else:
        plain = TextRequest.read({"prompt": item.prompt, "max_tokens": 1}, options)
        plain.model = service.config.name
        if item.prompts is not None:
            places = service.config.family.places
            current_request.member_prompts = check_member_prompts(
                item.prompts, item.prompt, places, options, "prompts"
            )
            _require_counting(service.config.family.names, columns.counting, item.prompts)
        try:
            [engine_input] = await outcome(handlers.completion.render_completion_request(plain))
        finally:
            current_request.member_prompts = {}  # All members read the same completion.
    return list(engine_input["prompt_token_ids"]), engine_input.get(MEMBER_PROMPTS)


def _require_counting(names: Sequence[str], counting: Collection[int], prompts: Iterable[str]) -> None:
    """Refuse a prompt for a member that nothing which is asked for needs: it would not be read."""
    heard = [name for place, name in enumerate(names) if place in counting]
    for name in prompts:
        if name not in heard:
            message = (
                f"{name} does not count in this score, so nothing would read its prompt; counting: "
                f"{', '.join(heard)}; give it a weight, or name it in members"
            )
            raise _refusal(f"prompts.{name}", message)


async def _completion(service: Service, item: ScoreItem) -> list[int]:
    """A completion's token ids, without special tokens at the start."""
    ids = await _tokenized(service, item.completion) if isinstance(item.completion, str) else item.completion
    if item.end:
        if service.handlers.end_id is None:
            raise _refusal("end", "the family has no end-of-turn token; leave it out")
        ids = [*ids, service.handlers.end_id]
    if not ids:
        raise _refusal("completion", "holds no token to score")
    size = service.engine.model_config.get_vocab_size()
    if max(ids) >= size:
        raise _refusal("completion", f"{max(ids)} is not a token id; allowed: 0 to {size - 1}")
    return ids


async def _tokenized(service: Service, completion: str) -> list[int]:
    if not completion:
        return []
    body = {"prompt": completion, "add_special_tokens": False, "max_tokens": 1}
    try:
        asked = TextRequest.read(body, service.config.server)
        asked.model = service.config.name
        [tokens] = await outcome(service.handlers.completion.render_completion_request(asked))
    except ApiError as error:
        raise ApiError(
            f"completion: {error}", status=error.status, param="completion", code=error.code
        ) from None
    return list(tokens["prompt_token_ids"])


async def _run(
    service: Service, request: ScoreRequest, columns: _Columns, texts: Sequence[_Text]
) -> list[tuple[Scored, ...]]:
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(index: int, text: _Text) -> tuple[Scored, ...]:
        async with places:
            request_id = f"{request.request_id}-{index}"
            scoring = Scoring(len(text.prompt) - 1, tuple(text.completion), columns.vectors)
            try:
                return await _ask(service, request_id, request.cache_salt, scoring, text)
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


async def _ask(
    service: Service, request_id: str, cache_salt: str | None, scoring: Scoring, text: _Text
) -> tuple[Scored, ...]:
    behind = text.completion[:-1]
    own = [[*prompt, *behind] for prompt in text.own] if text.own is not None else None
    prompt = tokens_input([*text.prompt, *behind], cache_salt=cache_salt)
    params = scoring_params(scoring, own)
    last = None
    async for output in service.handlers.engine.generate(prompt, params, request_id):
        last = output
    if last is None or last.outputs[0].finish_reason == "error":
        raise failure(request_id)
    found = scored(last, scoring)
    # No log-probability is above zero, so the sum is NaN only if one of them is.
    if any(math.isnan(sum(item.logprobs)) for item in found):
        raise failure(request_id)
    return found


def _items(
    columns: _Columns,
    texts: Sequence[_Text],
    tokens: Sequence[list[str]],
    found: Sequence[tuple[Scored, ...]],
) -> list[ScoredItem]:
    """The answer's items, built outside the event loop, since they may hold megabytes of numbers."""
    return [
        ScoredItem(index=index, token_ids=text.completion, tokens=own, **columns.shown(by_vector))
        for index, (text, own, by_vector) in enumerate(zip(texts, tokens, found, strict=True))
    ]


async def _tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's text. Tokenizers are not thread-safe, so this yields to other tasks from time to time."""
    found = list[str]()
    for start in range(0, len(ids), _DECODED_AT_ONCE):
        found.extend(convert_ids_list_to_tokens(tokenizer, list(ids[start : start + _DECODED_AT_ONCE])))
        await asyncio.sleep(0)
    return found


def _column(found: Scored) -> Column:
    return Column(
        logprobs=_finite(found.logprobs),
        total=_total(found.logprobs),
        ranks=list(found.ranks),
        top_logprobs=list(found.likeliest),
    )


def _reward(expert: Scored, reference: Scored) -> Reward:
    gains = [own - other for own, other in zip(expert.logprobs, reference.logprobs, strict=True)]
    return Reward(logprobs=_finite(gains), total=_total(gains))


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _total(values: Sequence[float]) -> float | None:
    return math.fsum(values) if all(map(math.isfinite, values)) else None


def _refusal(param: str, message: str) -> ApiError:
    return ApiError(f"{param}: {message}.", param=param, code="invalid_value")
