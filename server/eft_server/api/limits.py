"""What one client may cost: body size, time to send it, media type, and requests in flight. Pure ASGI."""

import asyncio
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_server.api.errors import ApiError

__all__ = ["BodyLimit", "ConcurrencyLimit"]

_RETRY_AFTER_S = 1


class ClientGoneError(Exception):
    """The client left before it had sent the whole body."""


class BodyLimit:
    """Read each request's body whole before the application runs, within bounds of size and time.

    A body has to be JSON without content encoding (415), of at most `max_bytes` (413), and complete within
    `timeout_s` seconds (408).
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body at hand, or answer 408, 413 or 415."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
            if scope["method"] == "POST":
                _check_media_type(Headers(scope=scope))
        except ClientGoneError:
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, _Replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self.max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._collect(receive)
        except TimeoutError:
            message = f"The request body did not arrive within {self.timeout_s:g} seconds."
            raise ApiError(message, status=408, headers={"Connection": "close"}) from None

    async def _collect(self, receive: Receive) -> bytes:
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
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _too_large(self) -> ApiError:
        message = f"The request body is too large; allowed: up to {self.max_bytes} bytes."
        # What is still on its way is not read, so the connection cannot be used again.
        return ApiError(message, status=413, headers={"Connection": "close"})


class _Replay:
    """An ASGI receive that gives a body already read, then whatever else arrives."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class ConcurrencyLimit:
    """Answer 429 with Retry-After when `max_requests` requests to `paths` are already in flight."""

    def __init__(self, app: ASGIApp, *, max_requests: int, paths: Collection[str]) -> None:
        self.app = app
        self.max_requests = max_requests
        self.paths = frozenset(paths)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        if self._in_flight >= self.max_requests:
            await self._refusal().response()(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_flight -= 1

    def _refusal(self) -> ApiError:
        message = f"{self.max_requests} requests are already being served; try again shortly."
        return ApiError(message, status=429, headers={"Retry-After": str(_RETRY_AFTER_S)})


def _check_media_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        message = f"Content-Type {media_type or '(none)'!r} is not supported; send application/json."
        raise ApiError(message, status=415)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"Content-Encoding {encoding!r} is not supported; send the body as it is."
        raise ApiError(message, status=415)
