"""Limits on each client: body size, time to send it, media type, and requests answered at once. Pure ASGI."""

import asyncio
from collections.abc import Collection, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_server.api.edge.admission import path_of
from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.rooms import Room
from eft_server.api.serving.current import current
from eft_server.family.file import ServerOptions

__all__ = ["BodyLimit", "Places"]

_RETRY_AFTER_S = 1


class ClientGoneError(Exception):
    """The client left before it had sent the whole body."""


class BodyLimit:
    """Read each request's whole body before the application runs, within limits of size and time.

    A body has to be JSON without content encoding (415), of at most `max_bytes` (413), and complete within
    `timeout_s` seconds (408). `room` limits the bytes of all bodies under way (429).
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, timeout_s: float, room: Room, under_way: UnderWay
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self.room = room
        self.under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer 408, 413, 415 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held = _Held(self.room)
        try:
            await self._answer(held, scope, receive, send)
        finally:
            held.give_back()

    async def _answer(self, held: "_Held", scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(Headers(scope=scope), receive, held)
            if scope["method"] == "POST":
                _check_media_type(Headers(scope=scope))
        except ClientGoneError:
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, _Replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive, held: "_Held") -> bytes:
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self.max_bytes:
            raise self._too_large()
        message = f"The request body did not arrive within {self.timeout_s:g} seconds."
        late = ApiError(message, status=408, headers={"Connection": "close"})
        return await self.under_way.deadline(self.timeout_s, late).wait_for(self._collect(receive, held))

    async def _collect(self, receive: Receive, held: "_Held") -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.max_bytes:
                raise self._too_large()
            held.take(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _too_large(self) -> ApiError:
        # The connection drops the rest of the body: closing before it has come would lose the answer on its way.
        return ApiError(f"The request body is too large; allowed: up to {self.max_bytes} bytes.", status=413)


class _Held:
    """The bytes of one request's body."""

    def __init__(self, room: Room) -> None:
        self._room, self._key, self._count = room, current().key, 0

    def take(self, count: int) -> None:
        if not self._room.take_at_once(self._key, count):
            message = "The server is busy: the requests being sent are too large together; try again shortly."
            raise ApiError(message, status=429, headers={"Retry-After": str(_RETRY_AFTER_S)})
        self._count += count

    def give_back(self) -> None:
        self._room.give_back(self._key, self._count)
        self._count = 0


class _Replay:
    """An ASGI receive that gives the body that was read, and then later messages."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self.behind_the_body = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self.behind_the_body()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class Places:
    """Limit the requests to `paths` that are answered at once; a few wait, and others get 429 with Retry-After.

    Args:
        app: The application.
        room: The places.
        paths: The paths that need a place.
        options: How many requests may wait, and how long.
        under_way: Ends the waiting when the server stops.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        room: Room,
        paths: Collection[str],
        options: ServerOptions,
        under_way: UnderWay,
    ) -> None:
        self.app = app
        self.room = room
        self.paths = frozenset(paths)
        self.most_waiting = options.max_waiting_requests
        self.patience_s = options.waiting_timeout_s
        self.under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it has a place, or answer 429."""
        if scope["type"] != "http" or path_of(scope) not in self.paths:
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as place:
            try:
                entering = place.enter_async_context(self.room.take(current().key, 1))
                await self._entered(entering, receive)
            except ClientGoneError:
                return
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            await self.app(scope, receive, send)

    async def _entered(self, entering: Coroutine[Any, Any, None], receive: Receive) -> None:
        work = asyncio.ensure_future(entering)
        try:
            await asyncio.sleep(0)  # If a place is free, the request takes it now.
            if not work.done():
                await self._wait(work, receive)
        finally:
            await _cancelled(work)  # Once it has entered, this changes nothing.

    async def _wait(self, work: asyncio.Future[None], receive: Receive) -> None:
        if self.room.waiting > self.most_waiting:
            raise self._refusal(f"{self.most_waiting} requests are already waiting")
        late = self._refusal(f"no place became free in {self.patience_s:g} seconds")
        gone = asyncio.ensure_future(_gone(receive))
        try:
            either = asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            await self.under_way.deadline(self.patience_s, late).wait_for(either)
            if not work.done():
                raise ClientGoneError
        finally:
            await _cancelled(gone)

    def _refusal(self, reason: str) -> ApiError:
        message = f"The server is busy: {reason}; try again shortly."
        return ApiError(message, status=429, headers={"Retry-After": str(_RETRY_AFTER_S)})


async def _cancelled(work: asyncio.Future[None]) -> None:
    """Cancel the work if it is not done, and wait for its end."""
    if work.cancel():
        await asyncio.wait((work,))


async def _gone(receive: Receive) -> None:
    """Wait until the client, whose request has been read, disconnects."""
    if isinstance(receive, _Replay):
        receive = receive.behind_the_body
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_media_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        message = f"Content-Type {media_type or '(none)'!r} is not supported; send application/json."
        raise ApiError(message, status=415)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"Content-Encoding {encoding!r} is not supported; send the body as it is."
        raise ApiError(message, status=415)
