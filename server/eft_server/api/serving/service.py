"""The service behind all routes: the engine, the family's behaviours, and vLLM's handlers."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMError
from vllm.sampling_params import SamplingParams

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.errors import from_exception
from eft_server.api.edge.rooms import Room
from eft_server.api.requests.fields import check_member_prompts
from eft_server.api.requests.schemas import (
    ChatRequest,
    ExplainRequest,
    ResponseRequest,
    TextRequest,
    WeightedRequest,
)
from eft_server.api.scoring.token_bytes import TokenBytes
from eft_server.api.serving.current import current
from eft_server.api.serving.handlers import Handlers, build_handlers
from eft_server.api.serving.pulse import Pulse
from eft_server.behaviour.report import Report
from eft_server.behaviour.resolve import Behaviours, Resolved
from eft_server.engine.bounds import BAD_WORD_TOKENS
from eft_server.errors import BehaviourError
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice

__all__ = ["Service", "resolved_fields", "service_of"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """One family, served by one engine.

    Attributes:
        activation_room: The bytes of activations that requests under way may have together.
    """

    engine: EngineClient
    config: ServerConfig
    behaviours: Behaviours
    handlers: Handlers
    pulse: Pulse
    token_bytes: TokenBytes
    activation_room: Room
    started_s: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(
        cls,
        engine: EngineClient,
        config: ServerConfig,
        chat_template: str | None = None,
        voices: Sequence[Voice] = (),
        keys: int = 0,
    ) -> "Service":
        """Set the family up over a running engine, for a number of API keys."""
        pulse = Pulse(engine)
        handlers = build_handlers(engine, config, chat_template, voices, keys, pulse.heard)
        token_bytes = TokenBytes(engine.renderer.get_tokenizer(), engine.model_config.get_vocab_size())
        token_bytes.prepare()
        room = Room((config.server.max_activation_bytes,))
        return cls(engine, config, Behaviours(config), handlers, pulse, token_bytes, room)

    def weigh(self, request: WeightedRequest, payload: dict[str, Any]) -> Resolved:
        """Resolve a request's behaviour, and store it in the current request.

        Args:
            request: The request; its model is replaced by the engine's.
            payload: The request's JSON object, with eft and vllm_xargs in their original form.

        Raises:
            BehaviourError: The model is not served, or the weights are not allowed; or a report is asked for where
                nothing is generated.
        """
        model = payload.get("model") or self.config.name
        eft = self._without_prompts(request, payload.get("eft"))
        resolved = self.behaviours.resolve(model, eft, payload.get("vllm_xargs"))
        request.model = self.config.name
        current_request = current()
        if resolved.report:
            self._require_generation(request, payload)
            current_request.report = Report()
            # vLLM generates a token even if none is asked for.
            resolved = replace(resolved, report=payload.get("max_tokens") != 0)
        current_request.resolved, current_request.counting = resolved, resolved.counting
        _logger.info(
            "%s %s model=%s eft=%s user=%r",
            current_request.id,
            request.request_id,
            resolved.served,
            resolved_fields(resolved),
            request.user,
        )
        return resolved

    def require_room_for(self, bad_words: Sequence[str] | None) -> None:
        """Refuse bad words that have too many tokens, which only a tokenizer can count.

        Raises:
            ApiError: The engine has no room for them.
        """
        if not bad_words:
            return
        params = SamplingParams(bad_words=list(bad_words))
        try:
            params.update_from_tokenizer(self.engine.renderer.get_tokenizer())
        except VLLMError as error:
            raise from_exception(error) from None
        count = sum(map(len, params.bad_words_token_ids or ()))
        if count > BAD_WORD_TOKENS:
            message = f"bad_words: {count} tokens together are too many; allowed: up to {BAD_WORD_TOKENS}."
            raise ApiError(message, param="bad_words", code="invalid_value")

    @staticmethod
    def _require_generation(request: WeightedRequest, payload: dict[str, Any]) -> None:
        """Refuse a report of a request that generates nothing, or whose answer has its figures anyway."""
        if isinstance(request, ChatRequest | ResponseRequest | TextRequest):
            return
        place = "eft.report" if payload.get("eft") else "vllm_xargs.eft.report"
        if isinstance(request, ExplainRequest):
            message = "true is not needed: an explanation's summary has these figures; leave it out"
        else:
            message = (
                "true is for requests that generate; nothing is generated here: leave it out, or say false"
            )
        raise BehaviourError(message, place)

    def _without_prompts(self, request: WeightedRequest, eft: Any) -> Any:
        """Move the per-member prompts from a request's `eft` into the current request."""
        if not isinstance(eft, dict) or "prompts" not in eft:
            return eft
        if not isinstance(request, TextRequest):
            message = "a conversation's prompts come from the members' templates; only /v1/completions has this field"
            raise BehaviourError(message, "eft.prompts")
        current().member_prompts = check_member_prompts(
            eft["prompts"], request.prompt, self.config.family.places, self.config.server
        )
        return {key: value for key, value in eft.items() if key != "prompts"}


def service_of(request: Request) -> Service:
    """The service of this request's application."""
    service: Service = request.app.state.service
    return service


def resolved_fields(resolved: Resolved) -> dict[str, Any]:
    """The response's ``eft`` object: the applied behaviour, with defaults filled in."""
    if resolved.own_coefficients is not None:
        asked: dict[str, Any] = {"coefficients": resolved.own_coefficients}
    else:
        asked = {"weights": resolved.weights, "scale": resolved.scale, "amplify": resolved.amplify}
    return {
        "model": resolved.model,
        **asked,
        "filter": resolved.filter.model_dump() if resolved.filter else None,
    }
