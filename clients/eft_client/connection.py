"""One server over HTTP: requests and retries, bounded answers, failures as our errors."""

import asyncio
import json
import os
import re
from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from eft_client.errors import (
    BadAnswer,
    ConnectionFailed,
    EftError,
    ServerAnswered,
    TimedOut,
    WrongArgument,
    answered,
    error_in,
)
from eft_client.results import json_object
from eft_client.retries import Retries, retry_after_s
from eft_client.sse import events_in
from eft_client.text import shortened

__all__ = ["MAX_ANSWER_BYTES", "MAX_CONNECTIONS", "Connection"]

MAX_ANSWER_BYTES = 256 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
MAX_REASON_CHARS = 300
CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 256
KEY_VARIABLES = ("EFT_API_KEY", "OPENAI_API_KEY")

Json = dict[str, Any]

_URL = re.compile(r"(?P<server>https?://[^\s/?#@\x00-\x1f]+)(?P<path>/[^\s?#]*)?", re.IGNORECASE)


class Connection:
    """Requests to one server; safe to use by many tasks of one event loop at once.

    Attributes:
        base_url: The server's URL, with its /v1 and without a slash at the end.
        max_connections: How many requests are under way at once; others wait without a deadline.
    """

    def __init__(  # noqa: PLR0913 (one for each option)
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_s: float,
        retries: int,
        max_connections: int,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        if not timeout_s > 0:
            raise WrongArgument(f"timeout_s must be above 0, not {timeout_s}")
        if retries < 0:
            raise WrongArgument(f"retries must be 0 or more, not {retries}")
        if max_connections < 1:
            raise WrongArgument(f"max_connections must be 1 or more, not {max_connections}")
        self.max_connections = max_connections
        self._timeout_s = timeout_s
        self._retries = Retries(count=retries)
        # Waited for here and not in httpx's pool: a request that waits for room has not begun, so no deadline runs.
        self._room = asyncio.Semaphore(max_connections)
        self._transport = transport
        self._http = httpx.AsyncClient(
            headers=_headers(api_key),
            # What takes long is the answer; the deadline on it is asyncio's, which a trickle of bytes cannot stretch.
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            transport=transport,
        )

    async def open(self) -> None:
        """Enter the transport, if it is the caller's."""
        if self._transport is not None:
            await self._transport.__aenter__()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def get(self, path: str) -> Json:
        """What the server answers to a GET, as a JSON object.

        Raises:
            EftError: There was no answer, or one that is an error or no JSON object.
        """
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """What the server answers to this JSON body, as a JSON object.

        Raises:
            EftError: There was no answer, or one that is an error or no JSON object.
        """
        return await self._whole("POST", path, body)

    async def events(
        self, path: str, body: Mapping[str, Any], is_whole: Callable[[], bool]
    ) -> AsyncGenerator[Json, None]:
        """The JSON objects of the stream that the server answers with, until its end.

        The request is sent again only before the first of them. Closing the generator closes the connection.

        Args:
            path: Where to.
            body: What is asked.
            is_whole: Whether what was given so far may be all: not every server sends an event that ends the stream.

        Raises:
            EftError: There was no stream, it broke off, or an event is no JSON object.
        """
        content = _written(body)
        attempt = 0
        while True:
            begun = False
            try:
                async with aclosing(self._stream(path, content, is_whole)) as objects:
                    async for event in objects:
                        begun = True
                        yield event
                    return
            except EftError as error:
                if begun:
                    raise
                await self._wait(error, attempt)
            attempt += 1

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        content = _written(body)
        attempt = 0
        while True:
            try:
                async with self._room, self._deadline():
                    response = await self._send(method, path, content)
                    async with aclosing(response):
                        return json_object(await _read(response, MAX_ANSWER_BYTES))
            except EftError as error:
                await self._wait(error, attempt)
            attempt += 1

    async def _stream(
        self, path: str, content: bytes | None, is_whole: Callable[[], bool]
    ) -> AsyncGenerator[Json, None]:
        async with self._room:
            async with self._deadline():
                response = await self._send("POST", path, content)
            async with aclosing(response), aclosing(self._objects(response, is_whole)) as objects:
                async for found in objects:
                    yield found

    async def _objects(
        self, response: httpx.Response, is_whole: Callable[[], bool]
    ) -> AsyncGenerator[Json, None]:
        """The JSON objects in the events of a response, to the one that ends it."""
        if _content_type(response) != "text/event-stream":
            raise BadAnswer(f"asked for a stream, the server answered with {_content_type(response)!r:.80}")
        async with aclosing(events_in(_chunks(response, MAX_ANSWER_BYTES))) as events:
            while True:
                # Around each step and never around a yield: the caller's time does not count.
                async with self._deadline():
                    event = await anext(events, None)
                if event is None and not is_whole():
                    raise ConnectionFailed("the stream broke off before its end")
                if event is None or event.is_end:
                    return
                found = json_object(event.data)
                if found.get("error"):
                    raise error_in(found, status=None, request_id=_request_id(response))
                yield found

    async def _send(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        """A response whose status is a success, its body not yet read: the caller closes it."""
        request = self._http.build_request(method, self.base_url + path, content=content)
        response = await self._http.send(request, stream=True)
        try:
            if encoding := response.headers.get("content-encoding"):
                raise BadAnswer(f"the server used Content-Encoding {encoding!r:.80}, which was not asked for")
            if not response.is_success:
                raise await _refusal(response)
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _wait(self, error: EftError, attempt: int) -> None:
        """Wait before another attempt, or raise the error where there is to be none."""
        delay_s = self._retries.delay_s(error, attempt)
        if delay_s is None:
            raise error
        await sleep(delay_s)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Bound what is awaited inside, and say in our errors how it failed."""
        scope = asyncio.timeout(self._timeout_s)
        try:
            async with scope:
                yield
        except httpx.ConnectTimeout:
            raise self._timed_out("no connection", min(CONNECT_TIMEOUT_S, self._timeout_s)) from None
        except httpx.TimeoutException:
            raise self._timed_out("no answer", self._timeout_s) from None
        except httpx.TransportError as error:
            reason = shortened(str(error), MAX_REASON_CHARS) or type(error).__name__
            raise ConnectionFailed(f"{self.base_url}: {reason}") from error
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._timed_out("no answer", self._timeout_s) from None

    def _timed_out(self, what: str, seconds: float) -> TimedOut:
        return TimedOut(f"{self.base_url}: {what} within {seconds:g} seconds")


async def _chunks(response: httpx.Response, max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > max_bytes:
            raise BadAnswer(f"the server's answer is larger than {max_bytes} bytes")
        yield chunk


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    async with aclosing(_chunks(response, max_bytes)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def _refusal(response: httpx.Response) -> ServerAnswered:
    """The error that an unsuccessful response describes, whatever its body is."""
    status, request_id = response.status_code, _request_id(response)
    wait_s = retry_after_s(response.headers.get("retry-after"))
    try:
        body = await _read(response, MAX_ERROR_BYTES)
    except BadAnswer:
        body = b""
    try:
        return error_in(json_object(body), status=status, request_id=request_id, retry_after_s=wait_s)
    except BadAnswer:
        words = response.reason_phrase or "no reason given"
        if response.is_redirect:
            words += f"; it points to {response.headers['location']!r:.200}: give that as the base URL if you trust it"
        elif body:
            words += f": {body[:MAX_REASON_CHARS].decode('utf-8', 'replace')}"
        return answered(status, words, request_id=request_id, retry_after_s=wait_s)


def _request_id(response: httpx.Response) -> str | None:
    found: str | None = response.headers.get("x-request-id")
    return found


def _content_type(response: httpx.Response) -> str:
    given: str = response.headers.get("content-type", "")
    return given.partition(";")[0].strip().lower()


def _written(body: Mapping[str, Any] | None) -> bytes | None:
    """The body as JSON.

    Raises:
        WrongArgument: It holds something that JSON cannot.
    """
    if body is None:
        return None
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongArgument(f"the request cannot be written as JSON: {error}") from None


def _checked_url(url: str) -> str:
    """The URL without a slash at its end; one that names only a host gets the /v1 of OpenAI's paths."""
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise WrongArgument(f"{url!r:.200} is no base URL; expected one such as http://127.0.0.1:8000/v1")
    path = (found["path"] or "").rstrip("/")
    return found["server"] + (path or "/v1")


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "eft-client"}
    if api_key is None:
        api_key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise WrongArgument("the API key has characters that a header cannot hold (it is not shown here)")
        headers["Authorization"] = f"Bearer {api_key}"
    return headers
