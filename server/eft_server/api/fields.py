"""Every field of a request: what a supported one may hold, and why a refused one is refused.

The tables are complete: a test holds them against vLLM's request models, so a field that a new vLLM brings has
to be decided about before it is let in.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeAlias

from eft_server.api.checks import (
    Check,
    FieldError,
    flag,
    integer,
    items,
    number,
    text,
    token_biases,
    token_ids,
)
from eft_server.api.errors import ApiError
from eft_server.api.messages import check_messages
from eft_server.api.structured import check_response_format
from eft_server.config import ServerOptions
from eft_server.errors import shown

__all__ = [
    "BEHAVIOUR",
    "CHAT",
    "COMPLETION",
    "DETOKENIZE",
    "REFUSED",
    "TOKENIZE_CHAT",
    "TOKENIZE_TEXT",
    "Table",
    "accept",
    "check_member_prompts",
]

Table: TypeAlias = Mapping[str, Check]

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
_MAX_PROMPT_CHARS = 4 * 1024 * 1024


BEHAVIOUR = frozenset({"eft", "vllm_xargs"})
"""Fields that are not judged here but by Behaviours, which knows the experts and their bounds."""


def _object(value: Any, _options: ServerOptions) -> None:
    if not isinstance(value, dict):
        raise FieldError(f"must be an object, not {shown(value)}")


def _prompt(value: Any, options: ServerOptions) -> None:
    """Check one prompt, text or token ids, or a list of such prompts."""
    one_text = text(_MAX_PROMPT_CHARS)
    ids = token_ids(_INT32_MAX)
    if isinstance(value, str):
        one_text(value, options)
    elif not isinstance(value, list) or not value:
        raise FieldError("a prompt is a string, a list of token ids, or a list of either, and not empty")
    elif isinstance(value[0], int):
        ids(value, options)
    elif any(item == [] for item in value):
        raise FieldError("a list of token ids must not be empty")
    else:
        items(one_text if isinstance(value[0], str) else ids, "max_prompts")(value, options)


def check_member_prompts(
    value: Any, everybodys: Any, places: Mapping[str, int], options: ServerOptions
) -> dict[int, Any]:
    """Check a completion's prompts by member, and return them by the members' places.

    Raises:
        ApiError: A member is not known, a prompt is none, or the request has several prompts.
    """
    param = "eft.prompts"
    if not isinstance(value, dict):
        raise _wrong(param, f"must be an object of prompts by member, not {shown(value)}")
    if not isinstance(everybodys, str) and not (
        isinstance(everybodys, list) and isinstance(everybodys[0], int)
    ):
        raise _wrong(param, "needs a request with a single prompt")
    for name, prompt in value.items():
        if name not in places:
            raise _wrong(f"{param}.{name[:64]}", f"unknown member {shown(name)}; known: {', '.join(places)}")
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and _are_ids(prompt)):
            raise _wrong(f"{param}.{name}", "a prompt is a string or a list of token ids, and not empty")
        try:
            _prompt(prompt, options)
        except FieldError as error:
            raise _wrong(f"{param}.{name}{error.place}", str(error)) from None
    return {places[name]: prompt for name, prompt in value.items()}


def _are_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and type(prompt[0]) is int


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(f"{param}: {message}.", param=param, code="invalid_value")


def _stream_options(value: Any, options: ServerOptions) -> None:
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(value, dict):
        raise FieldError(f"an object with {' and '.join(known)} is needed")
    for key, setting in value.items():
        if key not in known:
            raise FieldError(f"not supported; known: {', '.join(known)}", f".{key}")
        flag(setting, options)


_SAMPLING: dict[str, Check] = {
    "model": text(256),
    "eft": _object,
    "vllm_xargs": _object,
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 100, above=True),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "top_k": integer(-1, _INT32_MAX),
    "min_p": number(0, 1),
    "seed": integer(0, _INT64_MAX),
    "n": integer(1, "max_n"),
    "max_tokens": integer(0, _INT32_MAX),
    "min_tokens": integer(0, _INT32_MAX),
    "stop": items(text(256), 4, or_one=True),
    "stop_token_ids": token_ids(64),
    "include_stop_str_in_output": flag,
    "ignore_eos": flag,
    "skip_special_tokens": flag,
    "spaces_between_special_tokens": flag,
    "logit_bias": token_biases,
    "allowed_token_ids": token_ids(65536),
    "bad_words": items(text(128), 64),
    "prompt_logprobs": integer(0, "max_logprobs"),
    "logprob_token_ids": token_ids(128),
    "return_tokens_as_token_ids": flag,
    "return_token_ids": flag,
    "response_format": check_response_format,
    "stream": flag,
    "stream_options": _stream_options,
    "stream_interval": integer(1, 1024),
    "add_special_tokens": flag,
    "echo": flag,
    "cache_salt": text(128, pattern=r"[^@/\\\x00]+"),
    "user": text(256),
}

CHAT: Table = _SAMPLING | {
    "messages": check_messages,
    "logprobs": flag,
    "top_logprobs": integer(0, "max_logprobs"),
    "max_completion_tokens": integer(1, _INT32_MAX),
    "add_generation_prompt": flag,
    "continue_final_message": flag,
    "return_prompt_text": flag,
}
"""POST /v1/chat/completions."""

COMPLETION: Table = _SAMPLING | {"prompt": _prompt, "logprobs": integer(0, "max_logprobs")}
"""POST /v1/completions."""

TOKENIZE_TEXT: Table = {
    "model": text(256),
    "prompt": text(_MAX_PROMPT_CHARS),
    "add_special_tokens": flag,
    "return_token_strs": flag,
}
"""POST /tokenize with a prompt."""

TOKENIZE_CHAT: Table = {
    "model": text(256),
    "messages": check_messages,
    "add_generation_prompt": flag,
    "continue_final_message": flag,
    "add_special_tokens": flag,
    "return_token_strs": flag,
}
"""POST /tokenize with messages."""

DETOKENIZE: Table = {"model": text(256), "tokens": token_ids(_INT32_MAX)}
"""POST /detokenize."""

_MEDIA = "the members are text models"
_TOOLS = "tool calls are not supported"
_RENDER = "it belongs to vLLM's render endpoints, which are not served"
_TRANSFER = "prefill and decode run in one engine"
_REASONING = "reasoning models are not supported"

REFUSED: Mapping[str, str] = {
    "best_of": "the server returns every choice; use n",
    "suffix": "the members complete text from the left only",
    "use_beam_search": "beam search bypasses the behaviour weights; use n with a temperature",
    "length_penalty": "it belongs to beam search",
    "early_stopping": "it belongs to beam search",
    "chat_template": "a request cannot bring its own template; the base's is used",
    "chat_template_kwargs": "a request cannot configure the chat template",
    "documents": "the members' templates do not take documents",
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "reasoning_effort": _REASONING,
    "reasoning": _REASONING,
    "include_reasoning": _REASONING,
    "thinking": _REASONING,
    "thinking_token_budget": _REASONING,
    "structured_outputs": "use response_format with json_object or json_schema",
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "mm_payload": _MEDIA,
    "return_mm_kwargs": _MEDIA,
    "modalities": _MEDIA,
    "audio": _MEDIA,
    "prompt_embeds": "members embed tokens differently, so a prompt has to be text or token ids",
    "kv_transfer_params": _TRANSFER,
    "ec_transfer_params": _TRANSFER,
    "return_token_offsets": _RENDER,
    "routed_experts_prompt_start": "the members' router decisions are not returned",
    "priority": "requests are served in the order of their arrival",
    "request_id": "the server names requests; the id is in the response",
    "session_id": "the server keeps no sessions",
    "truncate_prompt_tokens": "the server does not cut prompts; shorten the prompt",
    "truncation_side": "the server does not cut prompts; shorten the prompt",
    "watermarking": "watermarks are not supported",
    "repetition_detection": "use stop, max_tokens or the penalties",
}
"""Fields of vLLM's or OpenAI's requests that are refused, each with what to do instead or the reason."""

# What a client that spells out the defaults sends for a refused field; it asks for nothing.
_OFF: Mapping[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "tools": [],
    "tool_choice": "none",
    "include_reasoning": True,
    "mm_payload": "tensors",
    "return_token_offsets": False,
    "routed_experts_prompt_start": 0,
    "priority": 0,
}


def accept(payload: Mapping[str, Any], table: Table, options: ServerOptions) -> dict[str, Any]:
    """Check a request against its table and return what is left to act upon.

    A null means the field's default, as if it were absent.

    Raises:
        ApiError: A field is unknown, refused, or holds something that it may not.
    """
    given = {name: value for name, value in payload.items() if not _asks_for_nothing(name, value, table)}
    for name, value in given.items():
        if name not in table:
            raise _unsupported(name, table)
        try:
            table[name](value, options)
        except FieldError as error:
            param = f"{name}{error.place}"
            raise ApiError(f"{param}: {error}.", param=param, code="invalid_value") from None
    return given


def _asks_for_nothing(name: str, value: Any, table: Table) -> bool:
    if value is None:
        return name in table or name in REFUSED
    return name not in table and name in _OFF and type(value) is type(_OFF[name]) and value == _OFF[name]


def _unsupported(name: str, table: Table) -> ApiError:
    if name in REFUSED:
        message = f"The field {name!r} is not supported: {REFUSED[name]}."
        return ApiError(message, param=name, code="unsupported_field")
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ApiError(f"Unknown field {name[:100]!r}.{hint}", param=name, code="unknown_field")
