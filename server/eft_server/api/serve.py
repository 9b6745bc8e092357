"""Run the server: engine up, application over it, requests until a signal, everything down again."""

import asyncio
import contextlib
import copy
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import uvicorn
import uvloop
from uvicorn.config import LOGGING_CONFIG
from vllm.engine.protocol import EngineClient

from eft_server.api.app import create_app
from eft_server.api.auth import read_api_keys
from eft_server.api.connection import Connection
from eft_server.api.renderer import voices_of
from eft_server.config import ServerConfig
from eft_server.engine.launch import open_engine
from eft_server.engine.plan import EnginePlan
from eft_server.errors import ConfigError

__all__ = ["run"]

_WATCH_INTERVAL_S = 1.0
_GRACE_S = 10
_KEEP_ALIVE_S = 30
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(config: ServerConfig, plan: EnginePlan) -> None:
    """Serve a family until SIGINT or SIGTERM.

    Raises:
        ConfigError: The API keys cannot be read, or the address cannot be listened on.
        SystemExit: The engine stopped by itself (status 1).
    """
    key_file = config.server.api_key_file
    api_keys = read_api_keys(Path(key_file)) if key_file is not None else ()
    # Listening is tried before the engine starts, which takes a minute or more.
    with contextlib.closing(_listen(config.server.host, config.server.port)) as listener:
        for number in _STOP_SIGNALS:
            signal.signal(number, _interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(_serve(config, plan, listener, api_keys))


async def _serve(
    config: ServerConfig, plan: EnginePlan, listener: socket.socket, api_keys: Sequence[str]
) -> None:
    async with open_engine(plan) as engine:
        voices = voices_of(config, plan)
        app = create_app(engine, config, api_keys=api_keys, chat_template=plan.chat_template, voices=voices)
        server = _Server(_uvicorn_config(app))
        watch = asyncio.create_task(_stop_with(engine, server))
        listener.listen(server.config.backlog)
        _announce(config, listener, needs_key=bool(api_keys))
        try:
            await server.serve(sockets=[listener])
        finally:
            watch.cancel()
        failed = engine.errored
    if failed:
        sys.exit("The engine stopped by itself; its log is above.")


class _Server(uvicorn.Server):
    """Uvicorn's server, which answers a signal by stopping and does not raise it again afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _stop_with(engine: EngineClient, server: uvicorn.Server) -> None:
    while not engine.errored:
        await asyncio.sleep(_WATCH_INTERVAL_S)
    server.should_exit = True


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Stop a start. vLLM sometimes loses the exception while it waits for its processes, so a timer insists."""
    timer = threading.Timer(_GRACE_S, _leave, (number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _leave(number: int) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise ConfigError(
            f"server: cannot listen on {host}:{port}: {exc}; choose another --host or --port"
        ) from exc
    return listener


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=_log_config(),
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


def _log_config() -> dict[str, Any]:
    log_config = copy.deepcopy(LOGGING_CONFIG)
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
