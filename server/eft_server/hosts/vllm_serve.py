"""Under plain `vllm serve`: our whole application as an endpoint plugin (group `vllm.endpoint_plugins`).

vLLM's application stays outside: its socket, TLS, CORS and the operator's middleware. Every path leads into ours, so
that no request can reach the engine by a route of vLLM's, which would leave out the weights. The two middlewares of
vLLM's that ours has too are taken out: its keys would protect some paths only, and refuse in another shape.
"""

import asyncio
import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.tasks import SupportedTask

from eft_server.api.app import app_of_plan
from eft_server.api.draining import stopping
from eft_server.api.edge.connection import Connection
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.keys import read_api_keys
from eft_server.api.watch import watch_for_host
from eft_server.engine.launcher.launch import end_with
from eft_server.engine.launcher.plan import EnginePlan, plan
from eft_server.engine.message import KEY
from eft_server.engine.patches import overwrite
from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import inspect_family
from eft_server.hosts.engine_arguments import family_of
from eft_server.hosts.frontend_options import refuse_options
from eft_server.hosts.travelling import FAMILY, family_in, overrides_of

__all__ = ["EftEndpoints"]

_OURS = frozenset({"AuthenticationMiddleware", "XRequestIdMiddleware"})
"""vLLM's middlewares whose work our application does, on all paths and in OpenAI's shape."""

_DOCUMENTATION = ("/docs", "/openapi.json")


class EftEndpoints(EndpointPlugin):
    """Serves the family that vLLM's engine runs; an ordinary model is left to vLLM's routes."""

    name = "eft"
    required_tasks: tuple[SupportedTask, ...] | None = None

    def __init__(self) -> None:
        self._outside: FastAPI | None = None
        self._application: ASGIApp | None = None
        self._watching: asyncio.Task[None] | None = None

    @override
    def attach_router(self, app: FastAPI) -> None:
        """Take over every path, if the engine runs a family."""
        if family_of(app.state.args) is None:
            return
        self._outside = app
        app.router.routes[:] = [Mount("/", app=self._answer)]

    @override
    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Build the application over vLLM's engine.

        Raises:
            ConfigError: An option cannot be set for a family, or the engine was started for another one.
        """
        if self._outside is None:
            return
        if engine_client is None:
            raise ConfigError("vllm launch render: a family's prompts are rendered beside its engine")
        _require_alone(state)
        refuse_options(args)
        config = family_in(getattr(engine_client.model_config.hf_config, FAMILY, None))
        planned = plan(config, inspect_family(config))
        _require_same(engine_client, config, planned)
        end_with(engine_client.input_processor, planned)
        application = app_of_plan(engine_client, config, planned, api_keys=_api_keys(config, args))
        if args.disable_fastapi_docs:
            _hide_documentation(application)
        self._application = application
        pulse, under_way = application.state.service.pulse, application.state.under_way
        self._watching = asyncio.create_task(
            watch_for_host(pulse, under_way)
        )  # vLLM's server ends with its engine.
        _refuse_from_shutdown_on(engine_client, under_way)
        _leave_the_outside_to(self._outside, self._answer)
        _log_like_vllm()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._application is not None, "vLLM initialises its state before it listens"
        await self._application(scope, receive, send)


def _refuse_from_shutdown_on(engine: EngineClient, under_way: UnderWay) -> None:
    """Refuse new requests, and say so at /readyz, once vLLM shuts its engine down, which may drain it first."""
    shutdown = engine.shutdown

    def refusing(*args: Any, **options: Any) -> None:
        under_way.refuse(stopping())
        shutdown(*args, **options)

    engine.shutdown = refusing  # type: ignore[method-assign]


def _require_alone(state: State) -> None:
    others = [plugin.name for plugin in state.endpoint_plugins if plugin.name != EftEndpoints.name]
    if others:
        raise ConfigError(f"VLLM_PLUGINS: the routes of {', '.join(others)} cannot be served beside a family")


def _require_same(engine: EngineClient, config: ServerConfig, planned: EnginePlan) -> None:
    wanted = overrides_of(config, planned.options["hf_overrides"])[KEY]
    if getattr(engine.model_config.hf_config, KEY, None) != wanted:
        raise ConfigError(
            "the engine runs another family than its files describe; were they changed meanwhile?"
        )


def _api_keys(config: ServerConfig, args: Namespace) -> tuple[str, ...]:
    """The keys of the command line or VLLM_API_KEY, and those of the family's key file."""
    given: Sequence[str | None] = args.api_key or [envs.VLLM_API_KEY]
    return (*(key for key in given if key), *read_api_keys(config.server.api_key_file))


def _hide_documentation(application: FastAPI) -> None:
    routes = application.router.routes
    routes[:] = [route for route in routes if not getattr(route, "path", "").startswith(_DOCUMENTATION)]


def _leave_the_outside_to(app: FastAPI, answer: ASGIApp) -> None:
    """Take out what vLLM has added since `attach_router`, and have its server use our connections."""
    from uvicorn.protocols.http import auto

    app.router.routes[:] = [Mount("/", app=answer)]
    app.user_middleware[:] = [
        item for item in app.user_middleware if getattr(item.cls, "__name__", "") not in _OURS
    ]
    app.middleware_stack = None  # Built before, with the others; it is built again at the first request.
    overwrite(auto, "AutoHTTPProtocol", Connection)  # What uvicorn.Config resolves "auto" to, when it loads.


def _log_like_vllm() -> None:
    """Show our lines, such as each request's weights, where vLLM shows its own."""
    ours = logging.getLogger("eft_server")
    if not ours.handlers:
        theirs = logging.getLogger("vllm")
        ours.handlers, ours.propagate = list(theirs.handlers), False
        ours.setLevel(logging.INFO)
