"""The requests for the engine's handlers, which add the field eft to OpenAI's."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from typing_extensions import override
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.exceptions import VLLMError
from vllm.utils import random_uuid

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.errors import from_exception, from_validation
from eft_server.api.requests import fields, json_schemas
from eft_server.behaviour.request import EXAMPLE, BehaviourRequest, TextBehaviourRequest
from eft_server.family.file import ServerOptions

__all__ = [
    "ActivationsRequest",
    "ChatRequest",
    "Detokenize",
    "ExplainRequest",
    "ResponseRequest",
    "ScoreItem",
    "ScoreRequest",
    "TextRequest",
    "TokenizeChat",
    "TokenizeText",
    "WeightedRequest",
]

Stop: TypeAlias = str | list[str] | None
"""In vLLM's type it is limited to four; here the operator's limit applies (`fields`)."""


class _Checked(BaseModel):
    """A request model that accepts only the fields in its table."""

    table: ClassVar[fields.Table]
    shapes: ClassVar[Mapping[str, Any]] = json_schemas.SHARED

    @classmethod
    def read(cls, payload: dict[str, Any], options: ServerOptions) -> Self:
        """Check and convert a request's JSON object.

        Raises:
            ApiError: A field is unknown, refused or missing, or its value is not allowed.
        """
        given = fields.accept(payload, cls.table, options)
        try:
            return cls.model_validate({n: v for n, v in given.items() if n not in fields.BEHAVIOUR})
        except ValidationError as error:
            raise from_validation(error) from None
        except VLLMError as error:
            raise from_exception(error) from None

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """A JSON schema of the supported fields, with their definitions under ``$defs``."""
        schema = cls.model_json_schema(ref_template="#/components/schemas/{model}")
        named = {name: cls.shapes.get(name, shape) for name, shape in schema["properties"].items()}
        schema["properties"] = {name: shape for name, shape in named.items() if name in cls.table}
        schema["additionalProperties"] = False
        schema["$defs"] = _referred_to(schema["properties"], schema.pop("$defs", {}))
        return schema


def _referred_to(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a schema refers to, directly or indirectly."""
    text = json.dumps(schema)
    found = {name: part for name, part in definitions.items() if f'/{name}"' in text}
    left = {name: part for name, part in definitions.items() if name not in found}
    return found | (_referred_to(found, left) if found else {})


class _Weighted(_Checked):
    eft: BehaviourRequest | None = Field(default=None, description="Behaviour weights for this request.")
    dependencies: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    @override
    def read(cls, payload: dict[str, Any], options: ServerOptions) -> Self:
        """Check and convert a request's JSON object.

        Raises:
            ApiError: As for every request; or two fields contradict each other, or a field would have no effect.
        """
        for field, other in _CONTRADICTIONS:
            if _is_on(payload, field) and _is_on(payload, other):
                raise ApiError(f"{field} cannot be combined with {other}.", param=field, code="invalid_value")
        for field, needed in (*_DEPENDENCIES, *cls.dependencies):
            if _is_on(payload, field) and not _is_on(payload, needed):
                raise ApiError(f"{field} needs {needed}.", param=field, code="invalid_value")
        return super().read(payload, options)


_CONTRADICTIONS = (
    ("max_completion_tokens", "max_tokens"),
    ("prompt_logprobs", "stream"),
    ("structured_outputs", "response_format"),
    ("structured_outputs", "text"),
    # A required call rules out any other format.
    ("tools", "response_format"),
    ("tools", "structured_outputs"),
    ("tools", "text"),
    # They could rule out every token that the grammar allows, and the request would fail midway.
    *(
        (field, grammar)
        for field in ("allowed_token_ids", "bad_words", "min_tokens")
        for grammar in ("response_format", "structured_outputs", "tools")
    ),
)
_DEPENDENCIES = (
    ("stream_options", "stream"),
    ("stream_interval", "stream"),
    ("parallel_tool_calls", "tools"),
)


# A plain text format is no constraint.
_OFF: tuple[Any, ...] = (None, False, {"type": "text"}, {"format": {"type": "text"}})


def _is_on(payload: dict[str, Any], field: str) -> bool:
    value = payload.get(field)
    return not any(type(value) is type(off) and value == off for off in _OFF)


class ChatRequest(_Weighted, ChatCompletionRequest):
    """A chat completion with behaviour weights."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "demo",
                "messages": [{"role": "user", "content": "Hello!"}],
                "eft": EXAMPLE,
            }
        }
    )
    table = fields.CHAT
    stop: Stop = Field(default_factory=list)

    @classmethod
    @override
    def read(cls, payload: dict[str, Any], options: ServerOptions) -> Self:
        """Check and convert a request's JSON object, including combinations of fields.

        Raises:
            ApiError: As for every request; or the final message to continue is not the assistant's.
        """
        request = super().read(payload, options)
        if request.continue_final_message:
            if "add_generation_prompt" not in request.model_fields_set:
                request.add_generation_prompt = False
            if request.messages[-1]["role"] != "assistant":
                message = "continue_final_message needs a final message of the assistant."
                raise ApiError(message, param="continue_final_message")
        return request


class TextRequest(_Weighted, CompletionRequest):
    """A text completion with behaviour weights."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "demo", "prompt": "Once upon", "eft": EXAMPLE}}
    )
    table = fields.COMPLETION
    eft: TextBehaviourRequest | None = Field(default=None, description="Behaviour weights for this request.")
    stop: Stop = Field(default_factory=list)

    @classmethod
    @override
    def read(cls, payload: dict[str, Any], options: ServerOptions) -> Self:
        """Check and convert a request's JSON object.

        Raises:
            ApiError: As for every request; or there is no prompt.
        """
        if payload.get("prompt") is None:
            raise ApiError("prompt: missing; give text or token ids.", param="prompt", code="invalid_value")
        return super().read(payload, options)


class ResponseRequest(_Weighted, ResponsesRequest):
    """A response with behaviour weights."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "demo", "input": "Hello!", "eft": EXAMPLE}}
    )
    table = fields.RESPONSE
    stop: Stop = Field(default_factory=list)
    shapes = json_schemas.RESPONSE
    dependencies = (("top_logprobs", "include"),)


_MODEL = "The family, an alias, or a single member; weights may follow the first two: demo:helpful=0.7."
_PROMPTS = "With a prompt: prompts by member, for the members that read another one."


class ScoreItem(BaseModel):
    """A completion to score, with the messages or the prompt before it."""

    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[Any], WithJsonSchema(json_schemas.SHARED["messages"])] | None = None
    prompt: str | list[int] | None = Field(default=None, description="Text or token ids.")
    prompts: dict[str, str | list[int]] | None = Field(default=None, description=_PROMPTS)
    completion: str | list[int] = Field(
        description="The text to score. It is tokenized by itself, without special tokens; token ids are exact."
    )
    end: bool = Field(default=False, description="Also score the end-of-turn token.")


class ActivationsRequest(BaseModel):
    """The states inside members that are returned for a completion's tokens."""

    model_config = ConfigDict(extra="forbid")

    members: bool | list[str] = Field(default=True, description="All members, or those that are listed.")
    layers: Literal["all"] | list[int] = Field(
        description="Decoder layers, from 0, or from -1 at the end; each of the members has to have them."
    )
    site: Literal["residual", "mlp"] = Field(
        default="residual",
        description="What a layer adds up to, before any final norm; or what its feed-forward module gives.",
    )
    pool: Literal["last", "mean", "none"] = Field(
        default="last",
        description="Of which of the completion's tokens: the last, the mean over all, or each.",
    )


class ScoreRequest(_Weighted, BaseModel):
    """Completions to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "demo",
                "items": [
                    {
                        "messages": [{"role": "user", "content": "Hello!"}],
                        "completion": "Hello! How can I help?",
                        "end": True,
                    },
                    {"prompt": "Once upon", "completion": " a time"},
                ],
                "members": True,
                "eft": EXAMPLE,
            }
        }
    )
    table = fields.SCORE
    model: str | None = Field(default=None, description=_MODEL)
    items: list[ScoreItem]
    members: bool | list[str] = Field(
        default=True,
        description="Members whose log-probabilities are returned beside the composite's, for experts also their "
        "implicit rewards: all members, none, or those that are listed.",
    )
    statistics: bool = Field(
        default=False,
        description="Also return each column's entropy, sum of squared probabilities and log(1 − the greatest "
        "probability), for each token.",
    )
    activations: ActivationsRequest | None = Field(
        default=None,
        description="Also return states inside members, where the operator allows it (`server.activations`).",
    )
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = Field(default=None, description="Separates cached prompts from other clients'.")
    user: str | None = None
    vllm_xargs: dict[str, Any] | None = None
    request_id: str = Field(default_factory=lambda: f"score-{random_uuid()}")


class ExplainRequest(_Weighted, BaseModel):
    """A completion to explain token by token; if there is none, one is generated first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "demo",
                "messages": [{"role": "user", "content": "Hello!"}],
                "completion": "Hello! How can I help?",
                "top_logprobs": 5,
                "eft": EXAMPLE,
            }
        }
    )
    table = fields.EXPLAIN
    dependencies = (("prompts", "prompt"), ("end", "completion"), ("span", "completion"))
    model: str | None = Field(default=None, description=_MODEL)
    messages: Annotated[list[Any], WithJsonSchema(json_schemas.SHARED["messages"])] | None = None
    prompt: str | list[int] | None = Field(default=None, description="Text or token ids.")
    prompts: dict[str, str | list[int]] | None = Field(default=None, description=_PROMPTS)
    completion: str | list[int] | None = Field(
        default=None,
        description="Text, which is tokenized by itself, or token ids. Without it, a completion is generated.",
    )
    end: bool = Field(default=False, description="Also explain the end-of-turn token behind the completion.")
    span: list[int] | None = Field(
        default=None,
        description="The part of the completion to explain: the first token's place, and that behind the last.",
    )
    top_logprobs: int = Field(default=5, description="The number of likely tokens to explain for each token.")
    temperature: float | None = Field(default=None, description="With the next three: for `sampled_logprob`.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = Field(
        default=None, description="For generating; 256 by default, if there is room."
    )
    seed: int | None = Field(default=None, description="For generating.")
    stop: Stop = Field(default=None, description="For generating.")
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = Field(default=None, description="Separates cached prompts from other clients'.")
    user: str | None = None
    vllm_xargs: dict[str, Any] | None = None
    request_id: str = Field(default_factory=lambda: f"explain-{random_uuid()}")

    @classmethod
    @override
    def read(cls, payload: dict[str, Any], options: ServerOptions) -> Self:
        """Check and convert a request's JSON object, including combinations of fields.

        Raises:
            ApiError: As for every request; or there is not exactly one of messages and prompt, or a field for
                generating beside a completion.
        """
        if (payload.get("messages") is None) == (payload.get("prompt") is None):
            message = "messages: give either messages or a prompt, and not both."
            raise ApiError(message, param="messages", code="invalid_value")
        if payload.get("completion") is not None:
            for name in ("max_tokens", "seed", "stop"):
                if payload.get(name) is not None:
                    message = f"{name} has no effect: it is for generating, and the request has a completion."
                    raise ApiError(message, param=name, code="invalid_value")
        return super().read(payload, options)

    def item(self, completion: str | list[int]) -> ScoreItem:
        """The prompt with a completion."""
        return ScoreItem(
            messages=self.messages,
            prompt=self.prompt,
            prompts=self.prompts,
            completion=completion,
            end=self.end,
        )


WeightedRequest: TypeAlias = ChatRequest | ExplainRequest | ResponseRequest | ScoreRequest | TextRequest
"""A request with behaviour weights."""


class TokenizeText(_Checked, TokenizeCompletionRequest):
    """Text to tokenize."""

    table = fields.TOKENIZE_TEXT


class TokenizeChat(_Checked, TokenizeChatRequest):
    """Messages to render with the chat template and tokenize."""

    table = fields.TOKENIZE_CHAT


class Detokenize(_Checked, DetokenizeRequest):
    """Token ids to turn into text."""

    table = fields.DETOKENIZE
