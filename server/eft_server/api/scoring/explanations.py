"""Explanations of a completion: what was likely at each token, and which expert pushed where.

One pass over the text serves the composite, every member, and the composite without each of its experts.
"""

import asyncio
import json
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from vllm.sampling_params import SamplingParams

from eft_server.api.requests.schemas import ChatRequest, ExplainRequest, TextRequest
from eft_server.api.scoring.contributions import Contributions, reward
from eft_server.api.scoring.texts import (
    Text,
    completed,
    member_prompts,
    read_prompt,
    refusal,
    require_scoring,
    require_switches,
    score_text,
)
from eft_server.api.scoring.token_bytes import TokenBytes
from eft_server.api.serving.current import current
from eft_server.api.serving.service import Service, resolved_fields
from eft_server.api.serving.stream import outcome
from eft_server.behaviour.coefficients import alone, without
from eft_server.behaviour.resolve import Resolved
from eft_server.engine.message import Explained, Explaining, Scored, Scoring, explained
from eft_server.family.family import BASE
from eft_server.family.file import ServerConfig

__all__ = ["ExplainAnswer", "explain"]

_MAX_TOKENS = 256
"""Tokens to generate by default, if there is room."""

_DIGITS = 6
"""Digits behind the point: the numbers come from float32, and answers are long."""


class Likeliest(BaseModel):
    """A token with a log-probability."""

    id: int
    text: str = Field(description="U+FFFD stands for a part of a character.")
    bytes: list[int]
    special: bool = Field(description="Whether it controls a model, such as one that ends a turn.")
    logprob: float | None


class MemberView(BaseModel):
    """What one member by itself says of a token, and what it would rather have said."""

    logprob: float | None
    rank: int
    top: Likeliest


class WithoutExpert(Likeliest):
    """The likeliest token if one expert's weight were 0, with its log-probability and that of the token there."""

    token_logprob: float | None
    changed: bool = Field(description="Whether that is another token than the composite's likeliest.")


class BehaviourParts(BaseModel):
    """The parts of a logit, in nats: they sum to the log-probability and a constant of the row."""

    base: float | None
    experts: dict[str, float | None]
    amplify: float | None
    filter: float | None


class MemberParts(BaseModel):
    """The same for a single member, or for the request's own coefficients."""

    members: dict[str, float | None]
    filter: float | None


Parts = BehaviourParts | MemberParts


class LikelyToken(Likeliest):
    """One of the composite's likeliest tokens."""

    sampled_logprob: float | None
    members: dict[str, float | None]
    contributions: Parts


class ExplainedToken(Likeliest):
    """One token of the completion; `logprob` is of the composite's own distribution."""

    index: int
    sampled_logprob: float | None = Field(description="After temperature, min_p, top_k and top_p.")
    rank: int
    entropy: float
    kl: float | None = Field(description="KL(composite‖base), in nats.")
    rewards: dict[str, float | None] = Field(description="log π_expert − log π_reference.")
    members: dict[str, MemberView]
    contributions: Parts
    constant: float | None = Field(description="The sum of the contributions less the log-probability.")
    without: dict[str, WithoutExpert]
    top: list[LikelyToken]


class Sampling(BaseModel):
    """The settings that `sampled_logprob` is about, as the engine applies them; top_k is 0 for every token."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float


class Completion(BaseModel):
    """The completion; finish_reason is null if the request gave it."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


class Summary(BaseModel):
    """Figures over the explained tokens: sums of log-probabilities, means of the others."""

    tokens: int
    changed: float = Field(description="The share of tokens at which the base's likeliest token is another.")
    kl: float | None
    entropy: float
    logprob: float | None
    rewards: dict[str, float | None]


class Usage(BaseModel):
    """Number of tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ExplainAnswer(BaseModel):
    """A completion, explained token by token. Logarithms are natural ones; null is minus infinity."""

    object: Literal["eft.explanation"] = "eft.explanation"
    id: str
    created: int
    model: str
    eft: dict[str, Any] = Field(description="The applied behaviour, with defaults filled in.")
    sampling: Sampling
    prompt_token_ids: list[int]
    prompts: dict[str, list[int]] | None = Field(description="Every member's prompt, where they differ.")
    completion: Completion
    span: list[int]
    tokens: list[ExplainedToken]
    summary: Summary
    usage: Usage


@dataclass(frozen=True)
class _Plan:
    """What the engine is asked.

    Attributes:
        names: the members, whose vectors follow the composite's.
        removed: for each expert with a weight, the place of the vector without it.
        vectors: as in `Scoring`.
        explaining: what is reported of a row.
    """

    names: tuple[str, ...]
    removed: dict[str, int]
    vectors: tuple[tuple[float, ...], ...]
    explaining: Explaining

    @classmethod
    def of(cls, config: ServerConfig, resolved: Resolved, likely: int, sampling: Sampling) -> "_Plan":
        names = config.family.names
        weighted = [name for name, weight in resolved.weights.items() if weight * resolved.scale]
        fewer = [
            without(config, resolved.coefficients, name, resolved.weights[name], resolved.scale).numbers
            for name in weighted
        ]
        explaining = Explaining(
            likely=likely,
            leading=1 + len(names),
            base=1 + names.index(BASE),
            filtered=resolved.coefficients.filter is not None,
            **sampling.model_dump(),
        )
        vectors = (resolved.coefficients.numbers, *(alone(config, name).numbers for name in names), *fewer)
        places = {name: 1 + len(names) + index for index, name in enumerate(weighted)}
        return cls(names, places, vectors, explaining)

    def scoring(self, text: Text) -> Scoring:
        return Scoring(len(text.prompt) - 1, tuple(text.completion), self.vectors, self.explaining)

    @property
    def numbers_a_token(self) -> int:
        """How many numbers the engine sends back for each token."""
        return sum(math.prod(shape) for shape in self.scoring(Text([0], None, [0])).shapes.values())


async def explain(service: Service, request: ExplainRequest, resolved: Resolved) -> bytes:
    """Explain a request's completion, or generate one and explain that.

    Returns:
        An `ExplainAnswer` as JSON.

    Raises:
        ApiError: The completion cannot be explained.
        GenerationError: The engine failed.
    """
    require_scoring(service)
    switches = request.chat_template_kwargs
    require_switches(service, switches, [request.item([])])
    sampling = _sampling(service, request)
    likely = min(request.top_logprobs, service.engine.model_config.get_vocab_size())
    plan = _Plan.of(service.config, resolved, likely, sampling)
    everybody = frozenset(range(len(plan.names)))
    prompt = await read_prompt(service, request.item([]), switches, everybody)
    given, finish_reason = request.completion, None
    if given is None:
        given, finish_reason = await _generated(service, request, resolved, plan, prompt)
    text = await completed(service, prompt, request.item(given))
    first, stop = _span(request, text)
    _require_room(service.config, plan, stop - first, "span")
    part = text.part(first, stop)
    scoring = plan.scoring(part)
    output, scores = await score_text(service, request.request_id, request.cache_salt, scoring, part)
    found = explained(output, scoring)
    about = _Material(service.config, service.token_bytes, resolved, plan, part, first, scores, found)
    head = {
        "object": "eft.explanation",
        "id": request.request_id,
        "created": int(time.time()),
        "model": resolved.model,
        "eft": resolved_fields(resolved),
        "sampling": sampling.model_dump(),
        "prompt_token_ids": text.prompt,
        "prompts": None if text.own is None else dict(zip(plan.names, text.own, strict=True)),
        "span": [first, stop],
        "usage": _usage(text, generated=finish_reason is not None),
    }
    return await asyncio.to_thread(_written, head, about, text, finish_reason)


def _written(head: dict[str, Any], about: "_Material", text: Text, finish_reason: str | None) -> bytes:
    """The answer, encoded outside the event loop and token by token, since an encoder holds the interpreter's lock."""
    rows = _Rows(about)
    whole = {
        **head,
        "completion": _completion(about.token_bytes, text, finish_reason),
        "summary": rows.summary(),
    }
    tokens = (json.dumps(rows.token(place)).encode() for place in range(len(about.text.completion)))
    return b'%b,"tokens":[%b]}' % (json.dumps(whole).encode()[:-1], b",".join(tokens))


def _completion(token_bytes: TokenBytes, text: Text, finish_reason: str | None) -> dict[str, Any]:
    shown = token_bytes.text_of(token for token in text.completion if token not in token_bytes.special)
    return {"text": shown, "token_ids": text.completion, "finish_reason": finish_reason}


def _usage(text: Text, *, generated: bool) -> dict[str, int]:
    count = len(text.completion) if generated else 0
    return {
        "prompt_tokens": text.length - count,
        "completion_tokens": count,
        "total_tokens": text.length,
    }


def _sampling(service: Service, request: ExplainRequest) -> Sampling:
    defaults = service.handlers.completion.default_sampling_params
    asked = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p")
        if (value := getattr(request, name)) is not None or (value := defaults.get(name)) is not None
    }
    params = SamplingParams(**asked)
    return Sampling(
        temperature=params.temperature, top_p=params.top_p, top_k=max(0, params.top_k), min_p=params.min_p
    )


def _span(request: ExplainRequest, text: Text) -> tuple[int, int]:
    count = len(text.completion)
    first, stop = request.span or (0, count)
    if stop > count:
        raise refusal("span", f"{[first, stop]} ends behind the completion, which has {count} tokens")
    return first, stop


def _require_room(config: ServerConfig, plan: _Plan, tokens: int, param: str) -> None:
    needed, most = tokens * plan.numbers_a_token, config.server.max_scores
    if needed > most:
        message = (
            f"{tokens} tokens with top_logprobs {plan.explaining.likely} are {needed} numbers; allowed: up to {most}, "
            f"so {most // plan.numbers_a_token} tokens at a time"
        )
        raise refusal(param, message)


async def _generated(
    service: Service, request: ExplainRequest, resolved: Resolved, plan: _Plan, prompt: Text
) -> tuple[list[int], str]:
    """Generate a completion: its token ids, with the one that ended it, and why it ended."""
    count = request.max_tokens
    if count is None:
        room = service.engine.model_config.max_model_len - prompt.length
        count = max(1, min(_MAX_TOKENS, room, service.config.server.max_scores // plan.numbers_a_token))
    _require_room(service.config, plan, count, "max_tokens")
    current_request = current()
    current_request.counting, current_request.rendered = resolved.coefficients.counting, None
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "cache_salt")
    body = {name: value for name in names if (value := getattr(request, name)) is not None}
    body |= {"max_tokens": count, "return_token_ids": True}
    choice = await (_chat if request.messages is not None else _text)(service, request, body)
    return list(choice.token_ids), str(choice.finish_reason)


async def _chat(service: Service, request: ExplainRequest, body: dict[str, Any]) -> Any:
    switches = {"chat_template_kwargs": request.chat_template_kwargs}
    chat = ChatRequest.read(body | {"messages": request.messages} | switches, service.config.server)
    chat.model = service.config.name
    return (await outcome(service.handlers.chat.create_chat_completion(chat, None))).choices[0]


async def _text(service: Service, request: ExplainRequest, body: dict[str, Any]) -> Any:
    plain = TextRequest.read(body | {"prompt": request.prompt}, service.config.server)
    plain.model = service.config.name
    with member_prompts(service, request.prompt, request.prompts):
        return (await outcome(service.handlers.completion.create_completion(plain, None))).choices[0]


@dataclass(frozen=True)
class _Material:
    """Everything that an answer's tokens are made from."""

    config: ServerConfig
    token_bytes: TokenBytes
    resolved: Resolved
    plan: _Plan
    text: Text
    first: int
    scores: tuple[Scored, ...]
    explained: Explained


class _Rows:
    """An answer's tokens, row by row, as plain values; arrays are (C, N1) as in `Contributions`."""

    def __init__(self, about: _Material) -> None:
        self._about = about
        plan, found, scores = about.plan, about.explained, about.scores
        chosen = [np.array(score.logprobs)[:, None] for score in scores[: plan.explaining.leading]]
        whole = [np.concatenate(pair, axis=1) for pair in zip(chosen, found.logprobs_LCN, strict=True)]
        self._own, by_member = whole[0], dict(zip(plan.names, whole[1:], strict=True))
        self._parts = Contributions.of(about.config, about.resolved, by_member, found.filter_CN1)
        with np.errstate(invalid="ignore"):
            self._constant = _listed(self._parts.total - self._own)
        self._ids = [
            [token, *ids] for token, ids in zip(about.text.completion, found.ids_CN.tolist(), strict=True)
        ]
        self._alone = {name: _listed(values) for name, values in by_member.items()}
        sampled = self._own if found.sampled_CN1 is None else found.sampled_CN1
        self._sampled, self._own_listed = _listed(sampled), _listed(self._own)
        self._members = {name: _listed(part) for name, part in self._parts.members.items()}
        self._experts = {name: _listed(part) for name, part in self._parts.experts.items()}
        self._base = None if self._parts.base is None else _listed(self._parts.base)
        self._amplify = None if self._parts.amplify is None else _listed(self._parts.amplify)
        self._filter = _listed(self._parts.filter)
        self._rewards = {
            name: [row[0] for row in _listed(reward(about.config, by_member, name)[:, :1])]
            for name in about.config.experts
        }

    def token(self, c: int) -> dict[str, Any]:
        """An `ExplainedToken`."""
        about, found = self._about, self._about.explained
        token = self._ids[c][0]
        return {
            "index": about.first + c,
            **self._named(token),
            "logprob": self._own_listed[c][0],
            "sampled_logprob": self._sampled[c][0],
            "rank": about.scores[0].ranks[c],
            "entropy": round(float(found.entropy_C[c]), _DIGITS),
            "kl": _rounded(found.divergence_C[c]),
            "rewards": {name: gains[c] for name, gains in self._rewards.items()},
            "members": {name: self._view(place, c) for place, name in enumerate(about.plan.names, 1)},
            "contributions": self._contributions(c, 0),
            "constant": next((value for value in self._constant[c] if value is not None), None),
            "without": {name: self._without(place, c) for name, place in about.plan.removed.items()},
            "top": [self._likely(c, n) for n in range(1, len(self._ids[c]))],
        }

    def _named(self, token: int) -> dict[str, Any]:
        token_bytes = self._about.token_bytes
        return {
            "id": token,
            "text": token_bytes.text(token),
            "bytes": list(token_bytes.of(token)),
            "special": token in token_bytes.special,
        }

    def _likeliest(self, place: int, c: int) -> dict[str, Any]:
        score = self._about.scores[place]
        return self._named(score.likeliest_ids[c]) | {"logprob": _rounded(score.likeliest[c])}

    def _view(self, place: int, c: int) -> dict[str, Any]:
        score = self._about.scores[place]
        top = self._likeliest(place, c)
        return {"logprob": _rounded(score.logprobs[c]), "rank": score.ranks[c], "top": top}

    def _without(self, place: int, c: int) -> dict[str, Any]:
        scores = self._about.scores
        changed = scores[place].likeliest_ids[c] != scores[0].likeliest_ids[c]
        return self._likeliest(place, c) | {
            "token_logprob": _rounded(scores[place].logprobs[c]),
            "changed": changed,
        }

    def _contributions(self, c: int, n: int) -> dict[str, Any]:
        removed = self._filter[c][n]
        if self._base is None or self._amplify is None:
            return {"members": {k: part[c][n] for k, part in self._members.items()}, "filter": removed}
        return {
            "base": self._base[c][n],
            "experts": {name: part[c][n] for name, part in self._experts.items()},
            "amplify": self._amplify[c][n],
            "filter": removed,
        }

    def _likely(self, c: int, n: int) -> dict[str, Any]:
        return {
            **self._named(self._ids[c][n]),
            "logprob": self._own_listed[c][n],
            "sampled_logprob": self._sampled[c][n],
            "members": {name: values[c][n] for name, values in self._alone.items()},
            "contributions": self._contributions(c, n),
        }

    def summary(self) -> dict[str, Any]:
        """A `Summary`."""
        scores, plan, found = self._about.scores, self._about.plan, self._about.explained
        pairs = zip(scores[0].likeliest_ids, scores[plan.explaining.base].likeliest_ids, strict=True)
        changed = [own != base for own, base in pairs]
        return {
            "tokens": len(changed),
            "changed": round(sum(changed) / len(changed), _DIGITS),
            "kl": _rounded(found.divergence_C.mean()),
            "entropy": round(float(found.entropy_C.mean()), _DIGITS),
            "logprob": _rounded(sum(scores[0].logprobs)),
            "rewards": {
                name: None if None in gains else round(math.fsum(gain or 0.0 for gain in gains), _DIGITS)
                for name, gains in self._rewards.items()
            },
        }


def _listed(values: np.ndarray) -> list[list[float | None]]:
    rounded = np.round(values, _DIGITS) + 0.0
    return [[value if math.isfinite(value) else None for value in row] for row in rounded.tolist()]


def _rounded(value: float) -> float | None:
    return round(float(value), _DIGITS) + 0.0 if math.isfinite(value) else None
