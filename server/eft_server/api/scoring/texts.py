"""A text whose completion is scored: from the request's words to token ids, and through the engine."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests.fields import check_member_prompts
from eft_server.api.requests.reasoning import require_readable
from eft_server.api.requests.schemas import ChatRequest, ScoreItem, TextRequest
from eft_server.api.serving.current import current
from eft_server.api.serving.handlers import failure
from eft_server.api.serving.renderer import MEMBER_PROMPTS
from eft_server.api.serving.service import Service
from eft_server.api.serving.stream import outcome
from eft_server.engine.message import Scored, Scoring, scored, scoring_params
from eft_server.errors import shown
from eft_server.family.file import ServerConfig

__all__ = [
    "Text",
    "completed",
    "finite",
    "member_prompts",
    "members_named",
    "read_prompt",
    "read_text",
    "refusal",
    "require_scoring",
    "require_switches",
    "score_text",
    "total",
]


@dataclass(frozen=True)
class Text:
    """A prompt and its completion as token ids.

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
        """Number of tokens, as the engine counts them."""
        return len(self.prompt) + len(self.completion)

    def part(self, first: int, stop: int) -> "Text":
        """The text with only these of its completion's tokens to score: those before them join the prompts."""
        before = self.completion[:first]
        own = None if self.own is None else [[*prompt, *before] for prompt in self.own]
        return Text([*self.prompt, *before], own, self.completion[first:stop])


def members_named(asked: bool | list[str], config: ServerConfig, field: str) -> tuple[str, ...]:
    """The members that a field of a request names, each once: all for true, none for false.

    Raises:
        ApiError: One is unknown.
    """
    if isinstance(asked, bool):
        return config.family.names if asked else ()
    for index, name in enumerate(asked):
        if name not in config.family:
            message = f"unknown member {shown(name)}; known: {', '.join(config.family.names)}"
            raise refusal(f"{field}.{index}", message)
    return tuple(dict.fromkeys(asked))


def require_scoring(service: Service) -> None:
    """Refuse to score if the engine was started with an option that skips the rows.

    Raises:
        ApiError: It was.
    """
    if service.engine.vllm_config.cache_config.kv_sharing_fast_prefill:
        raise ApiError("vLLM's option kv_sharing_fast_prefill skips the rows that scores need.")


async def read_text(
    service: Service,
    item: ScoreItem,
    switches: dict[str, Any] | None,
    counting: frozenset[int],
    *,
    whole: bool = False,
) -> Text:
    """Render and tokenize an item, and check that the engine has room for it.

    Args:
        service: The service.
        item: The item; a completion without tokens is refused.
        switches: The request's chat_template_kwargs, checked by `require_switches`.
        counting: The places of the members that contribute to any of the scores, or whose states are asked for.
        whole: Whether the engine reads the last token, too, and has to have room for the one behind it.

    Raises:
        ApiError: The item cannot be scored.
    """
    return await completed(service, await read_prompt(service, item, switches, counting), item, whole=whole)


async def completed(service: Service, prompt: Text, item: ScoreItem, *, whole: bool = False) -> Text:
    """The second half of `read_text`, behind what `read_prompt` gave."""
    completion = await _completion(service, item)
    text = replace(prompt, completion=completion)
    most = service.engine.model_config.max_model_len - whole
    if text.length > most:
        message = (
            f"a prompt of {prompt.length} tokens and a completion of {len(completion)} are too long; allowed: "
            f"{most} together{', with activations' if whole else ''}"
        )
        raise refusal("completion", message)
    return text


def require_switches(service: Service, switches: dict[str, Any] | None, items: Iterable[ScoreItem]) -> None:
    """Check a request's chat_template_kwargs.

    Raises:
        ApiError: The template does not read them, or no item has messages.
    """
    require_readable(switches, None, service.handlers.template_variables)
    if switches is not None and all(item.messages is None for item in items):
        raise refusal("chat_template_kwargs", "has no effect: no item has messages")


async def read_prompt(
    service: Service, item: ScoreItem, switches: dict[str, Any] | None, counting: frozenset[int]
) -> Text:
    """The first half of `read_text`: the prompts, with no completion yet."""
    options, handlers = service.config.server, service.handlers
    current().counting = counting
    if item.messages is not None:
        body = {"messages": item.messages, "chat_template_kwargs": switches, "max_completion_tokens": 1}
        chat = ChatRequest.read(body, options)
        chat.model = service.config.name
        _, [engine_input] = await outcome(handlers.chat.render_chat_request(chat))
    else:
        plain = TextRequest.read({"prompt": item.prompt, "max_tokens": 1}, options)
        plain.model = service.config.name
        with member_prompts(service, item.prompt, item.prompts):
            _require_counting(service.config.family.names, counting, item.prompts or ())
            [engine_input] = await outcome(handlers.completion.render_completion_request(plain))
    return Text(list(engine_input["prompt_token_ids"]), engine_input.get(MEMBER_PROMPTS), [])


@contextmanager
def member_prompts(
    service: Service, shared: Any, prompts: Mapping[str, str | list[int]] | None
) -> Iterator[None]:
    """While a prompt is rendered, these members read others; all of them read the same completion.

    Raises:
        ApiError: A member is unknown, or a prompt is not valid.
    """
    if prompts is not None:
        config = service.config
        current().member_prompts = check_member_prompts(
            prompts, shared, config.family.places, config.server, "prompts"
        )
    try:
        yield
    finally:
        current().member_prompts = {}


def _require_counting(names: Iterable[str], counting: Collection[int], prompts: Iterable[str]) -> None:
    """Refuse a prompt for a member that nothing which is asked for needs: it would not be read."""
    heard = [name for place, name in enumerate(names) if place in counting]
    for name in prompts:
        if name not in heard:
            message = (
                f"{name} does not count in this score, so nothing would read its prompt; counting: "
                f"{', '.join(heard)}; give it a weight, or name it in members"
            )
            raise refusal(f"prompts.{name}", message)


async def _completion(service: Service, item: ScoreItem) -> list[int]:
    """A completion's token ids, without special tokens at the start."""
    ids = await _tokenized(service, item.completion) if isinstance(item.completion, str) else item.completion
    if item.end:
        if service.handlers.end_id is None:
            raise refusal("end", "the family has no end-of-turn token; leave it out")
        ids = [*ids, service.handlers.end_id]
    if not ids:
        raise refusal("completion", "holds no token to score")
    size = service.engine.model_config.get_vocab_size()
    if max(ids) >= size:
        raise refusal("completion", f"{max(ids)} is not a token id; allowed: 0 to {size - 1}")
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


async def score_text(
    service: Service, request_id: str, cache_salt: str | None, scoring: Scoring, text: Text
) -> tuple[RequestOutput, tuple[Scored, ...]]:
    """Run the engine on a text.

    Returns:
        The engine's output and, from it, the scores under each vector.

    Raises:
        GenerationError: The engine failed, or a logit was not finite.
    """
    behind = text.completion if scoring.activations is not None else text.completion[:-1]
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
    return last, found


def finite(value: float) -> float | None:
    """A number for JSON: infinity is null."""
    return value if math.isfinite(value) else None


def total(values: Collection[float]) -> float | None:
    """The sum, null if one of them is infinite."""
    return math.fsum(values) if all(map(math.isfinite, values)) else None


def refusal(param: str, message: str) -> ApiError:
    """The error for a field whose value is not allowed."""
    return ApiError(f"{param}: {message}.", param=param, code="invalid_value")
