"""Run the server: start the engine, answer requests until a signal, stop everything."""

import asyncio
import copy
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.config import LOGGING_CONFIG

from eft_server.api.app import app_of_plan
from eft_server.api.draining import LAST_WORDS_S, DrainingServer
from eft_server.api.edge.admission import OPERATORS_PATHS
from eft_server.api.edge.connection import Connection
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.signals import stop_at_once_on_signals
from eft_server.api.routes import playground
from eft_server.api.serving.pulse import Pulse
from eft_server.api.supervise import report_ready
from eft_server.api.watch import keep_watch
from eft_server.engine.launcher.launch import open_engine
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.family.file import ServerConfig

__all__ = ["run"]

_KEEP_ALIVE_S = 30


def run(  # noqa: PLR0913 (what a server has, once)
    config: ServerConfig,
    plan: EnginePlan,
    listener: socket.socket,
    api_keys: Sequence[str],
    stages: Stages,
    supervisor: socket.socket | None = None,
) -> None:
    """Serve a family until SIGINT or SIGTERM.

    Args:
        config: The family file.
        plan: How its engine is started.
        listener: A bound socket, which listens once the engine runs.
        api_keys: The accepted keys; none means that no key is needed.
        stages: Shows the progress of the start.
        supervisor: Who wants to know when the server is ready, if anybody.

    Raises:
        KeyboardInterrupt: A signal came while the engine was starting.
        SystemExit: The engine stopped unexpectedly (status 1), or a second signal came (128 and its number).
    """
    uvloop.run(_serve(config, plan, listener, api_keys, stages, supervisor))


async def _serve(  # noqa: PLR0913 (the same)
    config: ServerConfig,
    plan: EnginePlan,
    listener: socket.socket,
    api_keys: Sequence[str],
    stages: Stages,
    supervisor: socket.socket | None,
) -> None:
    async with open_engine(plan, stages) as engine:
        app = app_of_plan(engine, config, plan, api_keys=api_keys)
        pulse, under_way = app.state.service.pulse, app.state.under_way
        server = DrainingServer(_uvicorn_config(app), under_way, config.server.drain_s)
        watch = asyncio.create_task(_stop_when_lost(pulse, under_way, server))
        listener.listen(server.config.backlog)
        stages.end("ready")
        _announce(config, listener, needs_key=bool(api_keys))
        if supervisor is not None:
            report_ready(supervisor)
        try:
            await server.serve(sockets=[listener])
        finally:
            stop_at_once_on_signals()
            watch.cancel()
        problem = pulse.problem()
        if problem or server.hurried:
            pulse.kill()
    if server.hurried:
        sys.exit(128 + server.hurried)
    if problem and not server.asked:
        sys.exit(f"The server has stopped, since {problem}; see its log above.")


async def _stop_when_lost(pulse: Pulse, under_way: UnderWay, server: DrainingServer) -> None:
    await keep_watch(pulse, under_way)
    server.should_exit = True


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=_log_config(),
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )


def _log_config() -> dict[str, Any]:
    log_config = copy.deepcopy(LOGGING_CONFIG)
    if not logging.getLogger("vllm").isEnabledFor(logging.INFO):
        log_config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    log_config["filters"] = {"routine": {"()": _without_routine}}
    log_config["loggers"]["uvicorn.access"]["filters"] = ["routine"]
    log_config["loggers"]["eft_server"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return log_config


def _without_routine() -> Callable[[logging.LogRecord], bool]:
    """A filter of the access log: of probes, scrapes and the playground's files only one that failed says anything."""

    def worth_a_line(record: logging.LogRecord) -> bool:
        _, _, path, _, status = cast("tuple[str, str, str, str, int]", record.args)
        path = path.partition("?")[0]
        return status >= 400 or not (path in OPERATORS_PATHS or path.startswith(f"{playground.PATH}/"))

    return worth_a_line


def _announce(config: ServerConfig, listener: socket.socket, *, needs_key: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    weights = ", ".join(f'"{name}": {weight:g}' for name, weight in config.defaults.weights.items())
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    body = f'{{"messages": [{{"role": "user", "content": "Hello!"}}], "eft": {{"weights": {{{weights}}}}}}}'
    print(f"Serving {config.name!r} at {url} (documentation: {url}/docs). Try:", flush=True)
    print(
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'", flush=True
    )
