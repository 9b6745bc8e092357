"""The server without a socket: requests of this process get the same checks, handlers, answers and errors."""

import json
import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx
from typing_extensions import override
from vllm.engine.protocol import EngineClient

from eft_server.api.app import create_app
from eft_server.api.edge.api_error import ApiError
from eft_server.api.serving.renderer import voices_of
from eft_server.api.transport import AppTransport
from eft_server.engine.launcher.launch import open_engine
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice

__all__ = ["Answered", "EngineTransport", "InProcess", "open_in_process"]

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
        transport: What carries requests to the application, for clients.
    """

    def __init__(
        self,
        engine: EngineClient,
        config: ServerConfig,
        *,
        chat_template: str | None = None,
        voices: Sequence[Voice] = (),
    ) -> None:
        app = create_app(engine, _patient(config), chat_template=chat_template, voices=voices)
        self.engine = engine
        self.transport = AppTransport(app)
        self._client = httpx.AsyncClient(
            transport=self.transport, base_url="http://in-process", timeout=None, trust_env=False
        )

    async def post(self, path: str, body: Mapping[str, Any]) -> Answered:
        """Send a request and wait for its whole answer; a stream is refused."""
        if body.get("stream"):
            return _refused("answers come whole here: leave stream out, or ask a server")
        response = await self._client.post(path, content=json.dumps(body).encode(), headers=_JSON)
        return Answered(response.status_code, response.json())


@asynccontextmanager
async def open_in_process(config: ServerConfig, plan: EnginePlan, stages: Stages) -> AsyncIterator[InProcess]:
    """Start the engine that a plan describes and the application over it; stop both on the way out.

    Raises:
        ConfigError: vLLM did not load this package's plugin.
    """
    async with open_engine(plan, stages) as engine:
        voices = voices_of(config, plan)
        server = InProcess(engine, config, chat_template=plan.chat_template, voices=voices)
        stages.end("ready")
        try:
            yield server
        finally:
            await server.transport.aclose()


class EngineTransport(httpx.AsyncBaseTransport):
    """An engine of this process in place of a server; it starts where this is entered, and stops where it is closed.

    Args:
        config: The family.
        plan: The engine.
        stages: Where the start is shown.
    """

    def __init__(self, config: ServerConfig, plan: EnginePlan, stages: Stages) -> None:
        self._opening = open_in_process(config, plan, stages)
        self._open = AsyncExitStack()
        self._server: InProcess | None = None

    @override
    async def __aenter__(self) -> Self:
        self._server = await self._open.enter_async_context(self._opening)
        return self

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Have the application answer."""
        assert self._server is not None, "not entered"
        return await self._server.transport.handle_async_request(request)

    @override
    async def aclose(self) -> None:
        """Leave what is under way, and stop the engine."""
        await self._open.aclose()


def _patient(config: ServerConfig) -> ServerConfig:
    """Nobody else is waiting, so nobody is sent away."""
    options: dict[str, Any] = {"max_waiting_requests": sys.maxsize, "waiting_timeout_s": math.inf}
    if "request_timeout_s" not in config.server.model_fields_set:
        options["request_timeout_s"] = _PATIENCE_S
    return config.model_copy(update={"server": config.server.model_copy(update=options)})


def _refused(reason: str) -> Answered:
    error = ApiError(
        f"The field 'stream' is not supported: {reason}.", param="stream", code="unsupported_field"
    )
    return Answered(error.status, error.body())
