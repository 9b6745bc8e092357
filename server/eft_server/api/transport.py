"""An application as httpx's transport: answers come as they are written, and closing one early is a client that leaves.

httpx's own ``ASGITransport`` gives an answer when the application has ended (https://github.com/encode/httpx/pull/3059).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import anyio
import httpx
from starlette.types import ASGIApp, Message, Scope
from typing_extensions import override

__all__ = ["AppTransport"]

_AHEAD = 64
"""How many pieces of an answer wait to be read before the application does."""

_logger = logging.getLogger(__name__)

Headers = Sequence[tuple[bytes, bytes]]


class AppTransport(httpx.AsyncBaseTransport):
    """Requests to an application on this event loop, each in a task of its own.

    An answer that breaks off is an `httpx.ReadError`, as over a socket; what the application raises is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._under_way: set[_Exchange] = set()

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Wait until the answer begins; cancelling that is the client's leaving, too."""
        exchange = _Exchange(self._app, _scope(request), await request.aread())
        self._under_way.add(exchange)
        exchange.task.add_done_callback(lambda _: self._under_way.discard(exchange))
        try:
            status, headers = await exchange.started
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(status, headers=headers, stream=exchange)

    @override
    async def aclose(self) -> None:
        """Leave every request that is under way, and wait until the application is done with it."""
        await asyncio.gather(*(exchange.aclose() for exchange in list(self._under_way)))


class _Exchange(httpx.AsyncByteStream):
    """A request, and its answer as the application writes it.

    Attributes:
        task: What runs the application.
        started: The answer's status and headers.
    """

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._body: bytes | None = body
        self._over = asyncio.Event()
        self._is_whole = False
        self._writing, self._reading = anyio.create_memory_object_stream[bytes](_AHEAD)
        self.started: asyncio.Future[tuple[int, Headers]] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(app, scope))

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._reading:
            yield chunk
        if not self._is_whole:
            raise httpx.ReadError("the answer broke off")

    @override
    async def aclose(self) -> None:
        """Tell the application that the client has left, if it is still answering, and wait until it has ended."""
        self._over.set()
        self._reading.close()
        await asyncio.wait((self.task,))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            _logger.exception("a request failed in the application")
        finally:
            if not self.started.done():
                self._start(500, ())
                self._is_whole = True
            self._over.set()
            self._writing.close()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            return
        if chunk := message.get("body"):
            with suppress(
                anyio.BrokenResourceError
            ):  # Nobody reads it: over a socket that is no error, either.
                await self._writing.send(chunk)
        if not message.get("more_body", False):
            self._is_whole = True
            self._over.set()
            self._writing.close()

    def _start(self, status: int, headers: Headers) -> None:
        if not self.started.done():
            self.started.set_result((status, headers))


def _scope(request: httpx.Request) -> Scope:
    """The request as a server tells of it; the version is one in which applications listen for a client that leaves."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": None,
        "root_path": "",
    }
