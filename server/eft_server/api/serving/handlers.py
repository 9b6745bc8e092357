"""The vLLM serving handlers that we need, built as vLLM's server builds them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override
from vllm.config import ModelConfig
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import GenerationError
from vllm.lora.request import LoRARequest

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.metrics import waiting
from eft_server.api.edge.rooms import Room
from eft_server.api.serving.current import current
from eft_server.api.serving.cut_calls import CutChats, CutResponses
from eft_server.api.serving.echoes import Echoes
from eft_server.api.serving.end_of_turn import end_of_turn
from eft_server.api.serving.guarded_engine import Guarded
from eft_server.api.serving.metrics import Counting
from eft_server.api.serving.renderer import MemberRenderer
from eft_server.behaviour.resolve import Behaviours
from eft_server.engine.launcher.parsers import template_variables
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice

__all__ = ["Handlers", "build_handlers", "failure"]


def failure(request_id: str) -> GenerationError:
    """The error for a request that failed in the engine; vLLM only reports "Internal server error"."""
    return GenerationError(
        f"Request {request_id} failed in the engine (its logits were not finite, its grammar took too long "
        "or allowed no token, or its state was lost). "
        "Other requests are not affected."
    )


class _Models(OpenAIServingModels):
    @override
    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        resolved = current().resolved
        return resolved.model if resolved else super().model_name(lora_request)


class _FailsByName:
    """Includes the request's id if its generation failed."""

    def _raise_if_error(self, finish_reason: str | None, request_id: str) -> None:
        if finish_reason == "error":
            raise failure(request_id)


class _NeedsRoom:
    """Refuses a prompt that leaves no room for an answer; vLLM's message would be about max_tokens."""

    model_config: ModelConfig
    prompt_field: str

    def _extract_prompt_len(self, prompt: Any) -> int:
        length: int = super()._extract_prompt_len(prompt)  # type: ignore[misc]
        context = self.model_config.max_model_len
        if length >= context:
            raise ApiError(
                f"{self.prompt_field}: {length} tokens leave no room for an answer in a context of {context}.",
                param=self.prompt_field,
                code="context_length_exceeded",
            )
        return length


class _Chat(_FailsByName, _NeedsRoom, CutChats, OpenAIServingChat):
    prompt_field = "messages"


class _Completion(_FailsByName, _NeedsRoom, Echoes, OpenAIServingCompletion):
    prompt_field = "prompt"


class _Responses(_FailsByName, _NeedsRoom, CutResponses, OpenAIServingResponses):
    prompt_field = "input"

    @override
    def _convert_generation_error_to_streaming_response(self, e: GenerationError) -> str:
        """Raise the error: vLLM's event for it is not valid in a stream of responses."""
        raise e


@dataclass(frozen=True)
class Handlers:
    """The handlers that turn a request into engine calls and their outputs into a response.

    Attributes:
        engine: The engine, with counters.
        template_variables: The variables of the chat template that requests can set.
        end_id: The end-of-turn token, if there is one.
    """

    engine: EngineClient
    chat: OpenAIServingChat
    completion: OpenAIServingCompletion
    responses: OpenAIServingResponses
    tokenization: ServingTokenization
    template_variables: frozenset[str]
    end_id: int | None


def build_handlers(  # noqa: PLR0913 (what a server has, once)
    engine: EngineClient,
    config: ServerConfig,
    chat_template: str | None = None,
    voices: Sequence[Voice] = (),
    keys: int = 0,
    heard: Callable[[], None] = lambda: None,
) -> Handlers:
    """Build the handlers over a running engine.

    Args:
        engine: The running engine.
        config: The family.
        chat_template: The template that renders messages; None means that of the base's tokenizer.
        voices: How messages are rendered for the members, unless they all use that template.
        keys: Number of API keys.
        heard: Called for each output of the engine.
    """
    options = config.server
    bounds = (options.max_sequences, options.max_tokens_under_way)
    room = Room(bounds, options.share(keys), waiting("sequences"))
    guarded = Guarded(engine, room, salted=bool(keys) and not options.share_prefix_cache)
    served = [model.id for model in Behaviours(config).served_models()]
    counting: Any = Counting(guarded, served, config.experts, heard)
    template: dict[str, Any] = {"chat_template": chat_template, "chat_template_content_format": "auto"}
    parsing: dict[str, Any] = {
        "tool_parser": options.tool_parser,
        "enable_auto_tools": options.tool_parser is not None,
        "reasoning_parser": options.reasoning_parser or "",
    }
    paths = [BaseModelPath(name=config.name, model_path=engine.model_config.model)]
    models = _Models(engine, paths)
    renderer = MemberRenderer(
        engine.model_config, engine.renderer, request_logger=None, **template, **parsing
    )
    renderer.voices, renderer.member_count = voices, len(config.family)
    renderer.warmup()
    shared: dict[str, Any] = {"online_renderer": renderer, "request_logger": None}
    return Handlers(
        engine=counting,
        chat=_Chat(counting, models, response_role="assistant", **shared, **template, **parsing),
        completion=_Completion(counting, models, **shared),
        responses=_Responses(counting, models, **shared, **template, **parsing),
        tokenization=ServingTokenization(models, renderer, **template),
        template_variables=template_variables(
            chat_template or getattr(engine.renderer.tokenizer, "chat_template", None)
        ),
        end_id=end_of_turn(engine.renderer.get_tokenizer(), chat_template, _end_ids(engine)),
    )


def _end_ids(engine: Any) -> frozenset[int]:
    """The tokens at which the engine stops, from its generation config, which has one id, a list, or none."""
    ids = engine.input_processor.generation_config_fields.get("eos_token_id")
    return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))
