"""`eft serve --supervise`: start the server again when it ends, and answer in its place meanwhile.

The supervisor is a small program without vLLM. It binds the address, and both it and the server, a process of its own,
listen on that one socket: the supervisor accepts connections only while the server does not.
"""

import asyncio
import contextlib
import ctypes
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from eft_client.exits import EXIT_FAILED
from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.connection import Connection
from eft_server.api.edge.signals import STOP_SIGNALS, tell
from eft_server.errors import ConfigError, shown

__all__ = ["INHERITED", "inherited", "report_ready", "supervise"]

INHERITED = "EFT_INHERITED"
"""The variable that names the descriptors of the server's socket and of its end of a channel to the supervisor."""

_READY = b"ready"
_GO_ON = b"go on"
_HANDOVER_S = 10.0
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
_STEADY_S = 300.0
"""A server that has served for so long is started again without a longer delay than the first."""

_USUAL_START_S = 15.0
_UNREAD_BYTES = 4 << 20
_UNREAD_S = 5.0
_ON_ITS_WAY_S = 2.0
_POLL_S = 0.05
_SET_DEATH_SIGNAL = 1
"""prctl's PR_SET_PDEATHSIG."""


def supervise(listener: socket.socket, command: Sequence[str]) -> int:
    """Run the server until it is told to stop, and start it again whenever it ends otherwise.

    The first start has to succeed. Later ones are repeated after 1, 2, 4, … 60 s.

    Args:
        listener: The bound socket.
        command: What starts the server; it finds the socket by `inherited`.

    Returns:
        The exit status: the server's last one.
    """
    return asyncio.run(_Supervisor(listener, command).run())


def inherited() -> tuple[socket.socket, socket.socket]:
    """The socket and the channel of a server that is supervised; it gets SIGTERM if its supervisor is killed.

    Raises:
        ConfigError: Somebody else has set the variable.
    """
    descriptors = os.environ.pop(INHERITED)
    try:
        listener, channel = (socket.socket(fileno=int(number)) for number in descriptors.split(","))
    except (ValueError, OSError) as error:
        message = f"{INHERITED}={shown(descriptors)}: only eft serve --supervise sets this variable; unset it"
        raise ConfigError(message) from error
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):  # Killed before the line above.
            os.kill(os.getpid(), signal.SIGTERM)
    return listener, channel


def report_ready(channel: socket.socket) -> None:
    """Tell the supervisor that the server is about to accept connections, and wait until it accepts no more itself."""
    channel.settimeout(_HANDOVER_S)
    with contextlib.suppress(OSError):
        channel.sendall(_READY)
        channel.recv(len(_GO_ON))


class _Supervisor:
    def __init__(self, listener: socket.socket, command: Sequence[str]) -> None:
        self._listener = listener
        self._command = command
        self._signals: list[int] = []
        self._signalled = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._start_s = _USUAL_START_S
        self._expected_s = 0.0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._pass_on, number)
        delay_s, has_served = _FIRST_DELAY_S, False
        while True:
            began_s = time.monotonic()
            status, served_s = await self._one_run()
            has_served = has_served or served_s is not None
            if self._signals or status == 0 or not has_served:
                return status if status >= 0 else 128 - status
            delay_s = _FIRST_DELAY_S if (served_s or 0) > _STEADY_S else delay_s
            ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            tell(
                f"The server ended {ended} after {time.monotonic() - began_s:.0f} s; "
                f"starting it again in {delay_s:g} s"
            )
            async with self._answering(delay_s + self._start_s):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._signalled.wait(), delay_s)
            if self._signals:
                return 0
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _one_run(self) -> tuple[int, float | None]:
        """Run the server once: its exit status, and how long it served, if it did."""
        began_s, served_s = time.monotonic(), None
        ours, its = socket.socketpair()
        ours.setblocking(False)
        async with self._answering(self._start_s) as substitute:
            with its:
                try:
                    self._process = await asyncio.create_subprocess_exec(
                        *self._command,
                        env=os.environ | {INHERITED: f"{self._listener.fileno()},{its.fileno()}"},
                        pass_fds=(self._listener.fileno(), its.fileno()),
                        start_new_session=True,  # A terminal's Ctrl-C reaches it once, through the supervisor.
                    )
                except OSError as error:  # Such as too little memory: it may be there the next time.
                    ours.close()
                    tell(f"The server cannot be started: {error}")
                    return EXIT_FAILED, None
            for number in self._signals:
                self._process.send_signal(number)
            with ours:
                loop = asyncio.get_running_loop()
                is_ready = await loop.sock_recv(ours, len(_READY)) == _READY
                if is_ready:
                    substitute.stop_accepting()
                    with contextlib.suppress(OSError):
                        await loop.sock_sendall(ours, _GO_ON)
        if is_ready:
            ready_s = time.monotonic()
            self._start_s = ready_s - began_s
        status = await self._process.wait()
        if is_ready:
            served_s = time.monotonic() - ready_s
        return status, served_s

    def _pass_on(self, number: int) -> None:
        self._signals.append(number)
        self._signalled.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    @asynccontextmanager
    async def _answering(self, expected_s: float) -> AsyncIterator["_Substitute"]:
        """Answer every request with 503 while the block runs; a server is expected in some seconds."""
        self._expected_s = time.monotonic() + expected_s
        substitute = _Substitute(self._listener, self._unavailable)
        substitute.start()
        try:
            yield substitute
        finally:
            await substitute.close()

    async def _unavailable(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say when to come back, after reading a body of usual size: a client would not look for an answer before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNREAD_S):
                size, more = 0, True
                while more and size < _UNREAD_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        seconds = max(1, math.ceil(self._expected_s - time.monotonic()))
        headers = {"Connection": "close", "Retry-After": str(seconds)}
        text = f"The server is starting; try again in about {seconds} s."
        await ApiError(text, status=503, headers=headers).response()(scope, receive, send)


class _Substitute:
    """Answers on a socket in the server's place.

    Not uvicorn's server: it stops by asyncio's `Server.close`, behind which a connection that has just been accepted is
    neither read nor closed.
    """

    def __init__(self, listener: socket.socket, app: Any) -> None:
        options: dict[str, Any] = {"http": Connection, "ws": "none", "lifespan": "off", "interface": "asgi3"}
        self._config = uvicorn.Config(app, **options, log_config=None, access_log=False, server_header=False)
        self._config.load()
        self._state = ServerState()
        self._listener = listener
        self._arriving: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Accept connections."""
        self._listener.setblocking(False)
        self._listener.listen(self._config.backlog)
        self._loop.add_reader(self._listener, self._accept)

    def stop_accepting(self) -> None:
        """Leave new connections to the server, at once."""
        self._loop.remove_reader(self._listener)

    async def close(self) -> None:
        """Answer those who have connected, and close what is left of them soon."""
        self.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ON_ITS_WAY_S):
                while self._arriving or self._state.connections:
                    await asyncio.sleep(_POLL_S)
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                arriving = self._loop.create_task(
                    self._loop.connect_accepted_socket(self._protocol, connection)
                )
                self._arriving.add(arriving)
                arriving.add_done_callback(self._arriving.discard)
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:  # Such as too many open files: some are closed soon.
            tell(f"The supervisor cannot accept a connection: {error}")
            time.sleep(_POLL_S)

    def _protocol(self) -> Connection:
        return Connection(config=self._config, server_state=self._state, app_state={})
