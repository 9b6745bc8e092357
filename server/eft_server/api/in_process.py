"""The server without a socket: requests of this process get the same checks, handlers, answers and errors."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from vllm.engine.protocol import EngineClient

from eft_server.api.app import create_app
from eft_server.api.edge.errors import ApiError
from eft_server.api.serving.renderer import voices_of
from eft_server.engine.launcher.launch import open_engine
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice

__all__ = ["Answered", "InProcess", "open_in_process"]

_PATIENCE_S = 86400.0
"""How long a request may take unless the family file says otherwise: nobody holds a connection meanwhile."""

_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Answered:
    """What the application answered: an HTTP status, and a completion or OpenAI's error object."""

    status: int
    body: dict[str, Any]


class InProcess:
    """The application over an engine.

    As many requests are under way at once as ``server.max_concurrent_requests`` allows; others wait their turn.

    Attributes:
        engine: What the application runs on.
    """

    def __init__(
        self,
        engine: EngineClient,
        config: ServerConfig,
        *,
        chat_template: str | None = None,
        voices: Sequence[Voice] = (),
    ) -> None:
        config = _patient(config)
        app = create_app(engine, config, chat_template=chat_template, voices=voices)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://in-process", timeout=None)
        self._places = asyncio.Semaphore(config.server.max_concurrent_requests)
        self.engine = engine

    async def post(self, path: str, body: Mapping[str, Any]) -> Answered:
        """Send a request and wait for its whole answer; a stream is refused."""
        if body.get("stream"):
            return _refused("answers come whole here: leave stream out, or ask a server")
        async with self._places:
            response = await self._client.post(path, content=json.dumps(body).encode(), headers=_JSON)
        return Answered(response.status_code, response.json())


@asynccontextmanager
async def open_in_process(config: ServerConfig, plan: EnginePlan, stages: Stages) -> AsyncIterator[InProcess]:
    """Start the engine that a plan describes and the application over it; stop it on the way out.

    Raises:
        ConfigError: vLLM did not load this package's plugin.
    """
    async with open_engine(plan, stages) as engine:
        voices = voices_of(config, plan)
        server = InProcess(engine, config, chat_template=plan.chat_template, voices=voices)
        stages.end("ready")
        yield server


def _patient(config: ServerConfig) -> ServerConfig:
    if "request_timeout_s" in config.server.model_fields_set:
        return config
    server = config.server.model_copy(update={"request_timeout_s": _PATIENCE_S})
    return config.model_copy(update={"server": server})


def _refused(reason: str) -> Answered:
    error = ApiError(
        f"The field 'stream' is not supported: {reason}.", param="stream", code="unsupported_field"
    )
    return Answered(error.status, error.body())
