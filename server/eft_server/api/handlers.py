"""vLLM's serving handlers: the ones we need, built as vLLM's own server builds them, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import GenerationError
from vllm.lora.request import LoRARequest

from eft_server.api.counts import Counting
from eft_server.api.naming import answering_as
from eft_server.api.renderer import MemberRenderer
from eft_server.config import ServerConfig
from eft_server.templates import Voice

__all__ = ["Handlers", "answering_as", "build_handlers"]


class _Models(OpenAIServingModels):
    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        return answering_as.get(super().model_name(lora_request))


class _FailsByName:
    """Names the request whose generation failed; vLLM says no more than "Internal server error"."""

    def _raise_if_error(self, finish_reason: str | None, request_id: str) -> None:
        if finish_reason == "error":
            raise GenerationError(
                f"Request {request_id} failed in the engine (its logits were not finite, or its state was lost). "
                "Other requests are not affected."
            )


class _Chat(_FailsByName, OpenAIServingChat):
    pass


class _Completion(_FailsByName, OpenAIServingCompletion):
    pass


@dataclass(frozen=True)
class Handlers:
    """What turns a request into engine calls and their outputs into a response."""

    chat: OpenAIServingChat
    completion: OpenAIServingCompletion
    tokenization: ServingTokenization


def build_handlers(
    engine: EngineClient,
    config: ServerConfig,
    chat_template: str | None = None,
    voices: Sequence[Voice] = (),
) -> Handlers:
    """Build the handlers over a running engine.

    Args:
        engine: The running engine.
        config: The family, under whose name it answers.
        chat_template: What renders messages; None means the base's tokenizer's own.
        voices: How the members read messages, where they do not all read that.
    """
    counting: Any = Counting(engine)
    template: dict[str, Any] = {"chat_template": chat_template, "chat_template_content_format": "auto"}
    paths = [BaseModelPath(name=config.name, model_path=engine.model_config.model)]
    models = _Models(engine, paths)
    renderer = MemberRenderer(engine.model_config, engine.renderer, request_logger=None, **template)
    renderer.voices, renderer.member_count = voices, len(config.members)
    renderer.warmup()
    return Handlers(
        chat=_Chat(
            counting,
            models,
            response_role="assistant",
            online_renderer=renderer,
            request_logger=None,
            **template,
        ),
        completion=_Completion(counting, models, online_renderer=renderer, request_logger=None),
        tokenization=ServingTokenization(models, renderer, **template),
    )
