"""Every field of a request: the check of a supported field, or the reason why it is refused.

The tables are complete: a test compares them with vLLM's request models, so each new field of vLLM needs a
decision.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeAlias

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests.checks import (
    Check,
    FieldError,
    flag,
    integer,
    items,
    number,
    one_of,
    text,
    token_biases,
    token_ids,
)
from eft_server.api.requests.messages import check_messages, each
from eft_server.api.requests.reasoning import (
    check_effort,
    check_include_reasoning,
    check_reasoning,
    check_template_kwargs,
)
from eft_server.api.requests.response_input import check_input
from eft_server.api.requests.structured import check_response_format, check_structured_outputs, check_text
from eft_server.api.requests.tools import chat_tools, flat_tools, tool_choice
from eft_server.behaviour.model_name import MAX_CHARS
from eft_server.engine import bounds
from eft_server.engine.activations import POOLS, SITES
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = [
    "BEHAVIOUR",
    "CHAT",
    "COMPLETION",
    "DETOKENIZE",
    "EXPLAIN",
    "REFUSED",
    "RESPONSE",
    "SCORE",
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
_MAX_LAYERS = 4096
_MAX_NOTES = 16
_MAX_NOTE_CHARS = 512


BEHAVIOUR = frozenset({"eft", "vllm_xargs"})
"""Fields that Behaviours checks, which knows the experts and their bounds."""


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
    value: Any,
    shared: Any,
    places: Mapping[str, int],
    options: ServerOptions,
    param: str = "eft.prompts",
) -> dict[int, Any]:
    """Check a completion's per-member prompts, and return them by the members' places.

    Raises:
        ApiError: A member is unknown, a prompt is not valid, or the request has several prompts.
    """
    if not isinstance(value, dict):
        raise _wrong(param, f"must be an object of prompts by member, not {shown(value)}")
    if not isinstance(shared, str) and not (isinstance(shared, list) and isinstance(shared[0], int)):
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
        raise FieldError(f"must be an object with {' and '.join(known)}")
    for key, setting in value.items():
        if key not in known:
            raise FieldError(f"not supported; known: {', '.join(known)}", f".{key}")
        flag(setting, options)


def _metadata(value: Any, options: ServerOptions) -> None:
    """Check the caller's metadata, which the response repeats."""
    if not isinstance(value, dict) or len(value) > _MAX_NOTES:
        raise FieldError(f"{shown(value)} is not an object of up to {_MAX_NOTES} strings")
    for key, note in value.items():
        text(64)(key, options)
        if not isinstance(note, str) or len(note) > _MAX_NOTE_CHARS:
            message = f"{shown(note)} is not a string of up to {_MAX_NOTE_CHARS} characters"
            raise FieldError(message, f".{key}")


_SAMPLING: dict[str, Check] = {
    "model": text(MAX_CHARS),
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
    "stop": items(text(256), "max_stop", or_one=True),
    "stop_token_ids": token_ids(bounds.STOP_TOKEN_IDS),
    "include_stop_str_in_output": flag,
    "ignore_eos": flag,
    "skip_special_tokens": flag,
    "spaces_between_special_tokens": flag,
    "logit_bias": token_biases(bounds.LOGIT_BIASES),
    "allowed_token_ids": token_ids(bounds.ALLOWED_TOKEN_IDS),
    "bad_words": items(text(128), bounds.BAD_WORDS),
    "prompt_logprobs": integer(0, "max_logprobs"),
    "logprob_token_ids": token_ids(bounds.LOGPROB_TOKEN_IDS),
    "return_tokens_as_token_ids": flag,
    "return_token_ids": flag,
    "response_format": check_response_format,
    "structured_outputs": check_structured_outputs,
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
    "tools": chat_tools,
    "tool_choice": tool_choice(nested=True),
    "parallel_tool_calls": flag,
    "include_reasoning": check_include_reasoning,
    "reasoning_effort": check_effort,
    "chat_template_kwargs": check_template_kwargs,
}
"""POST /v1/chat/completions."""

COMPLETION: Table = _SAMPLING | {"prompt": _prompt, "logprobs": integer(0, "max_logprobs")}
"""POST /v1/completions."""

_FROM_SAMPLING = (
    "model",
    "eft",
    "vllm_xargs",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "logit_bias",
    "structured_outputs",
    "stream",
    "cache_salt",
    "user",
)

RESPONSE: Table = {name: _SAMPLING[name] for name in _FROM_SAMPLING} | {
    "input": check_input,
    "instructions": text(_MAX_PROMPT_CHARS),
    "max_output_tokens": integer(1, _INT32_MAX),
    "text": check_text,
    "include": items(one_of("message.output_text.logprobs"), 1),
    "top_logprobs": integer(0, "max_logprobs"),
    "tools": flat_tools,
    "tool_choice": tool_choice(nested=False),
    "parallel_tool_calls": flag,
    "reasoning": check_reasoning,
    "include_reasoning": check_include_reasoning,
    "chat_template_kwargs": check_template_kwargs,
    "metadata": _metadata,
    "truncation": one_of("disabled"),
    "service_tier": one_of("auto", "default"),
}
"""POST /v1/responses."""

_ITEM_KEYS = ("messages", "prompt", "prompts", "completion", "end")


def _score_items(value: Any, options: ServerOptions) -> None:
    """Check the structure of each item; its prompt is checked with other prompts."""
    for item, place in each(value, options.max_score_items, "items"):
        if not isinstance(item, dict):
            raise FieldError(f"{shown(item)} is not an object with {', '.join(_ITEM_KEYS)}", place)
        for key in item:
            if key not in _ITEM_KEYS:
                raise FieldError(f"not supported; an item has {', '.join(_ITEM_KEYS)}", f"{place}.{key[:64]}")
        if (item.get("messages") is None) == (item.get("prompt") is None):
            raise FieldError("needs either messages or a prompt, not both", place)
        if item.get("prompts") is not None and item.get("prompt") is None:
            raise FieldError("a conversation's prompts come from the members' templates", f"{place}.prompts")
        _one_text(item.get("completion"), f"{place}.completion", options)
        if item.get("prompt") is not None:
            _one_text(item["prompt"], f"{place}.prompt", options)
        if item.get("end") is not None and not isinstance(item["end"], bool):
            raise FieldError(f"{shown(item['end'])} is not true or false", f"{place}.end")


def _one_text(value: Any, place: str, options: ServerOptions) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or any(isinstance(item, str | list) for item in value):
        raise FieldError(f"{shown(value)} is neither text nor a list of token ids", place)
    try:
        token_ids(_INT32_MAX)(value, options)
    except FieldError as error:
        raise FieldError(str(error), f"{place}{error.place}") from None


def _members(value: Any, options: ServerOptions) -> None:
    if not isinstance(value, bool):
        items(text(256), 4096)(value, options)


def _activations(value: Any, options: ServerOptions) -> None:
    """Check the structure of what is asked for; which layers a member has is known later."""
    if not options.activations:
        raise FieldError(
            "this server does not return them; server.activations: true in its family file allows it"
        )
    if not isinstance(value, dict) or "layers" not in value:
        known = ", ".join(_ACTIVATIONS)
        raise FieldError(f"{shown(value)} is not an object with {known}, of which layers has to be there")
    for key, part in value.items():
        if key not in _ACTIVATIONS:
            raise FieldError(f"not supported; known: {', '.join(_ACTIVATIONS)}", f".{key[:64]}")
        try:
            _ACTIVATIONS[key](part, options)
        except FieldError as error:
            raise FieldError(str(error), f".{key}{error.place}") from None


def _some_members(value: Any, options: ServerOptions) -> None:
    if value is not True and (not isinstance(value, list) or not value):
        raise FieldError(f"{shown(value)} is neither true nor a list of at least one member")
    _members(value, options)


def _layers(value: Any, options: ServerOptions) -> None:
    if value != "all" and (not isinstance(value, list) or not value):
        raise FieldError(f'{shown(value)} is neither "all" nor a list of at least one layer')
    if value != "all":
        items(integer(-_MAX_LAYERS, _MAX_LAYERS), _MAX_LAYERS)(value, options)


_ACTIVATIONS: Table = {
    "members": _some_members,
    "layers": _layers,
    "site": one_of(*SITES),
    "pool": one_of(*POOLS),
}

SCORE: Table = {
    "model": text(MAX_CHARS),
    "eft": _object,
    "vllm_xargs": _object,
    "items": _score_items,
    "members": _members,
    "statistics": flag,
    "activations": _activations,
    "chat_template_kwargs": check_template_kwargs,
    "cache_salt": _SAMPLING["cache_salt"],
    "user": text(256),
}
"""POST /v1/eft/score."""


def _span(value: Any, options: ServerOptions) -> None:
    """Check the ends of a part of the completion; the completion's length is known later."""
    if not isinstance(value, list) or len(value) != 2:
        raise FieldError(f"{shown(value)} is not a list of two places, the first and the one behind the last")
    items(integer(0, _INT32_MAX), 2)(value, options)
    if value[0] >= value[1]:
        raise FieldError(f"{value} holds no token: the first place has to be below the second")


def _one_prompt(value: Any, options: ServerOptions) -> None:
    _one_text(value, "", options)


def _prompts(value: Any, _options: ServerOptions) -> None:
    """Check what `check_member_prompts` needs to say more."""
    if not isinstance(value, dict):
        raise FieldError(f"{shown(value)} is not an object of prompts by member")


EXPLAIN: Table = {
    "model": text(MAX_CHARS),
    "eft": _object,
    "vllm_xargs": _object,
    "messages": check_messages,
    "prompt": _one_prompt,
    "prompts": _prompts,
    "completion": _one_prompt,
    "end": flag,
    "span": _span,
    "top_logprobs": _SAMPLING["prompt_logprobs"],
    **{name: _SAMPLING[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    "max_tokens": integer(1, _INT32_MAX),
    "chat_template_kwargs": check_template_kwargs,
    "cache_salt": _SAMPLING["cache_salt"],
    "user": text(256),
}
"""POST /v1/eft/explain."""

TOKENIZE_TEXT: Table = {
    "model": text(MAX_CHARS),
    "prompt": text(_MAX_PROMPT_CHARS),
    "add_special_tokens": flag,
    "return_token_strs": flag,
}
"""POST /tokenize with a prompt."""

TOKENIZE_CHAT: Table = {
    "model": text(MAX_CHARS),
    "messages": check_messages,
    "tools": chat_tools,
    "chat_template_kwargs": check_template_kwargs,
    "add_generation_prompt": flag,
    "continue_final_message": flag,
    "add_special_tokens": flag,
    "return_token_strs": flag,
}
"""POST /tokenize with messages."""

DETOKENIZE: Table = {"model": text(MAX_CHARS), "tokens": token_ids(_INT32_MAX)}
"""POST /detokenize."""

_MEDIA = "the members are text-only models"
_TOOLS = "tool calls belong to chats and responses"
_STORE = "responses are not stored; send the earlier turns in input"
_RENDER = "it belongs to vLLM's render endpoints, which are not served"
_TRANSFER = "prefill and decode run in one engine"

REFUSED: Mapping[str, str] = {
    "best_of": "the server returns every choice; use n",
    "suffix": "the members complete text from the left only",
    "use_beam_search": "beam search bypasses the behaviour weights; use n with a temperature",
    "length_penalty": "it belongs to beam search",
    "early_stopping": "it belongs to beam search",
    "chat_template": "a request cannot bring a template; the base's is used",
    "documents": "the members' templates do not take documents",
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "functions": "use tools",
    "function_call": "use tool_choice",
    "reasoning": "chats have reasoning_effort, responses have reasoning",
    "include_reasoning": "reasoning belongs to chats and responses",
    "thinking": "use chat_template_kwargs with enable_thinking",
    "thinking_token_budget": "use max_tokens, which includes reasoning",
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
    "priority": "requests are served in order of arrival",
    "request_id": "the server assigns the id, which is in the response",
    "session_id": "the server keeps no sessions",
    "truncate_prompt_tokens": "the server does not cut prompts; shorten the prompt",
    "truncation_side": "the server does not cut prompts; shorten the prompt",
    "store": _STORE,
    "background": _STORE,
    "previous_response_id": _STORE,
    "previous_input_messages": _STORE,
    "prompt": "chats take text in messages, responses in input",
    "max_tool_calls": "the server does not call tools",
    "prompt_cache_key": "prefixes are shared automatically; use cache_salt to separate them",
    "enable_response_messages": "use /tokenize to see a prompt's tokens",
    "watermarking": "watermarks are not supported",
    "repetition_detection": "use stop, max_tokens or the penalties",
}
"""Fields of vLLM's or OpenAI's requests that are refused, each with an alternative or the reason.

A field that an endpoint supports is in its table, which takes precedence."""

# Defaults of refused fields, which some clients send although they change nothing.
_OFF: Mapping[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "tools": [],
    "tool_choice": "none",
    "include_reasoning": True,
    "store": False,
    "background": False,
    "mm_payload": "tensors",
    "return_token_offsets": False,
    "routed_experts_prompt_start": 0,
    "priority": 0,
}


def accept(payload: Mapping[str, Any], table: Table, options: ServerOptions) -> dict[str, Any]:
    """Check a request against its table and return the fields that take effect.

    A field that is null counts as absent.

    Raises:
        ApiError: A field is unknown or refused, or its value is not allowed.
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
