"""What the routes share: the engine, the family's behaviours, and vLLM's handlers over both."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from vllm.engine.protocol import EngineClient

from eft_server.api.handlers import Handlers, answering_as, build_handlers
from eft_server.api.schemas import ChatRequest, ResponseRequest, TextRequest
from eft_server.behaviours import Behaviours, Resolved
from eft_server.config import ServerConfig

__all__ = ["Service", "resolved_fields", "service_of"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """One family, served by one engine."""

    engine: EngineClient
    config: ServerConfig
    behaviours: Behaviours
    handlers: Handlers
    started_s: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(cls, engine: EngineClient, config: ServerConfig, chat_template: str | None = None) -> "Service":
        """Set the family up over a running engine."""
        handlers = build_handlers(engine, config.name, chat_template, config.server)
        return cls(engine, config, Behaviours(config), handlers)

    def weigh(
        self, request: ChatRequest | ResponseRequest | TextRequest, payload: dict[str, Any]
    ) -> Resolved:
        """Resolve the behaviour that a request asks for and write its coefficients where the engine finds them.

        Args:
            request: The request, which is changed: its model becomes the engine's, its xargs the coefficients.
            payload: The JSON object that it was read from; Behaviours judges eft and vllm_xargs as they came.

        Raises:
            BehaviourError: The model is not served, or the weights are not allowed.
        """
        model = payload.get("model") or self.config.name
        resolved = self.behaviours.resolve(model, payload.get("eft"), payload.get("vllm_xargs"))
        request.model = self.config.name
        request.vllm_xargs = {"eft": list(resolved.coefficients)}
        answering_as.set(resolved.model)
        _logger.info(
            "%s model=%s weights=%s scale=%g user=%r",
            request.request_id,
            resolved.model,
            resolved.weights,
            resolved.scale,
            request.user,
        )
        return resolved


def service_of(request: Request) -> Service:
    """The service behind the application that got this request."""
    service: Service = request.app.state.service
    return service


def resolved_fields(resolved: Resolved) -> dict[str, Any]:
    """The response's ``eft`` object: what was applied, defaults filled in."""
    return {"model": resolved.model, "weights": resolved.weights, "scale": resolved.scale}
