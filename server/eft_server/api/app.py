"""The application: routes, errors and limits around one engine."""

from collections.abc import Sequence
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp
from typing_extensions import override
from vllm.engine.protocol import EngineClient

from eft_server.api.edge.admission import PROBES, Admission
from eft_server.api.edge.auth import ApiKeyAuth
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.errors import install_error_handlers
from eft_server.api.edge.limits import BodyLimit, Places
from eft_server.api.edge.metrics import waiting
from eft_server.api.edge.rooms import Room
from eft_server.api.requests.openapi import describe_app
from eft_server.api.routes import (
    chat,
    completions,
    explanations,
    playground,
    responses,
    routers,
    scores,
    tokens,
)
from eft_server.api.serving.current import RequestScope
from eft_server.api.serving.renderer import voices_of
from eft_server.api.serving.service import Service
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice

__all__ = ["app_of_plan", "create_app"]


class _Application(FastAPI):
    """Gives every response an id, even errors from outside the routes."""

    @override
    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's stack, inside the scope of a request."""
        return RequestScope(super().build_middleware_stack())


def create_app(
    engine: EngineClient,
    config: ServerConfig,
    *,
    api_keys: Sequence[str] = (),
    chat_template: str | None = None,
    voices: Sequence[Voice] = (),
) -> FastAPI:
    """Build the HTTP application over a running engine.

    Args:
        engine: vLLM's AsyncLLM, started for this family.
        config: The family and its server options.
        api_keys: The accepted API keys; none means that the server is open.
        chat_template: The template that renders messages; None means that of the base's tokenizer.
        voices: How messages are rendered for the members, unless they all use that template.
    """
    app = _Application(
        title="eft-server",
        version=version("eft-server"),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service.over(engine, config, chat_template, voices, len(api_keys))
    app.state.under_way = UnderWay()
    for router in routers:
        app.include_router(router)
    install_error_handlers(app)
    describe_app(app)
    _add_limits(app, config, api_keys)
    return app


def app_of_plan(
    engine: EngineClient, config: ServerConfig, plan: EnginePlan, *, api_keys: Sequence[str] = ()
) -> FastAPI:
    """Build the application over an engine that was started by a plan, whose templates render messages.

    Args:
        engine: The running engine.
        config: The family and its server options.
        plan: How the engine was started.
        api_keys: As for `create_app`.
    """
    voices = voices_of(config, plan)
    return create_app(engine, config, api_keys=api_keys, chat_template=plan.chat_template, voices=voices)


def _add_limits(app: FastAPI, config: ServerConfig, api_keys: Sequence[str]) -> None:
    """Innermost first: a request is let in, authorised, then read, and only then takes one of the places."""
    options = config.server
    generating = {chat.PATH, completions.PATH, responses.PATH}
    working_paths = {*generating, scores.PATH, explanations.PATH, *tokens.WORKING_PATHS}
    share, under_way = options.share(len(api_keys)), app.state.under_way
    app.add_middleware(
        Places,
        room=Room([options.max_concurrent_requests], share, waiting("requests")),
        paths=working_paths,
        options=options,
        under_way=under_way,
    )
    app.add_middleware(
        BodyLimit,
        max_bytes=options.max_body_bytes,
        timeout_s=options.body_timeout_s,
        room=Room([options.max_bytes_under_way], share),
        under_way=under_way,
    )
    if api_keys:
        open_paths = PROBES | playground.paths() if options.playground else PROBES
        app.add_middleware(ApiKeyAuth, keys=api_keys, open_paths=open_paths)
    app.add_middleware(Admission, under_way=under_way)
