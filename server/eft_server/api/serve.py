"""Run the server: start the engine, answer requests until a signal, stop everything."""

import asyncio
import contextlib
import copy
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from typing_extensions import override
from uvicorn.config import LOGGING_CONFIG
from vllm.engine.protocol import EngineClient

from eft_server.api.app import create_app
from eft_server.api.edge.connection import Connection
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.errors import ApiError
from eft_server.api.edge.signals import GRACE_S, handled_by
from eft_server.api.serving.renderer import voices_of
from eft_server.engine.launcher.launch import open_engine
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.family.file import ServerConfig

__all__ = ["run"]

_WATCH_INTERVAL_S = 1.0
_KEEP_ALIVE_S = 30
_POLL_S = 0.05
LAST_WORDS_S = 2.0
"""How long answers may take to send an error before connections are closed."""


def run(
    config: ServerConfig, plan: EnginePlan, listener: socket.socket, api_keys: Sequence[str], stages: Stages
) -> None:
    """Serve a family until SIGINT or SIGTERM.

    Args:
        config: The family file.
        plan: How its engine is started.
        listener: A bound socket, which listens once the engine runs.
        api_keys: The accepted keys; none means that no key is needed.
        stages: Shows the progress of the start.

    Raises:
        KeyboardInterrupt: A signal came while the engine was starting.
        SystemExit: The engine stopped unexpectedly (status 1).
    """
    uvloop.run(_serve(config, plan, listener, api_keys, stages))


async def _serve(
    config: ServerConfig,
    plan: EnginePlan,
    listener: socket.socket,
    api_keys: Sequence[str],
    stages: Stages,
) -> None:
    async with open_engine(plan, stages) as engine:
        voices = voices_of(config, plan)
        app = create_app(engine, config, api_keys=api_keys, chat_template=plan.chat_template, voices=voices)
        server = _Server(_uvicorn_config(app), app.state.under_way)
        watch = asyncio.create_task(_stop_with(engine, server))
        listener.listen(server.config.backlog)
        stages.end("ready")
        _announce(config, listener, needs_key=bool(api_keys))
        try:
            await server.serve(sockets=[listener])
        finally:
            watch.cancel()
        failed = engine.errored
    if failed:
        sys.exit("The engine stopped unexpectedly; see its log above.")


class _Server(uvicorn.Server):
    """Uvicorn's server, which answers a signal by stopping and does not raise it again afterwards.

    When it stops waiting, unfinished answers end with an error: uvicorn would just cut them off.
    """

    def __init__(self, config: uvicorn.Config, under_way: UnderWay) -> None:
        super().__init__(config)
        self._under_way = under_way

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Report the signal, since requests under way may take a while."""
        if not self.should_exit:
            print("Stopping", file=sys.stderr, flush=True)
        super().handle_exit(sig, frame)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for requests under way, within a time limit; a second signal ends the waiting."""
        last = asyncio.get_running_loop().call_later(GRACE_S - LAST_WORDS_S, self._end_answers)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()
        if self.force_exit:
            self._end_answers()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    while self.server_state.tasks:
                        await asyncio.sleep(_POLL_S)

    def _end_answers(self) -> None:
        message = "The server is stopping; the answer is not complete."
        headers = {"Connection": "close", "Retry-After": "5"}
        self._under_way.end(ApiError(message, status=503, headers=headers))

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        with handled_by(self.handle_exit):
            yield


async def _stop_with(engine: EngineClient, server: uvicorn.Server) -> None:
    while not engine.errored:
        await asyncio.sleep(_WATCH_INTERVAL_S)
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
        timeout_graceful_shutdown=GRACE_S,
    )


def _log_config() -> dict[str, Any]:
    log_config = copy.deepcopy(LOGGING_CONFIG)
    if not logging.getLogger("vllm").isEnabledFor(logging.INFO):
        log_config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    log_config["loggers"]["eft_server"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return log_config


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
