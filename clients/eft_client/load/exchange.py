"""One request and its answer: every piece gets a time stamp when it is read, and is parsed later."""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from eft_client.load.errors import LoadError
from eft_client.load.options import LoadOptions
from eft_client.load.prompts import LoadPrompt
from eft_client.load.records import INTERRUPTED
from eft_client.settings import Setting

__all__ = ["Connections", "Exchange", "body_of", "exchange"]

MAX_ANSWER_BYTES = 64 << 20
MAX_REFUSAL_BYTES = 64 << 10
#: What a piece costs beside its bytes, so that a stream of single bytes has its bound, too.
PIECE_BYTES = 64
#: Servers close idle connections, uvicorn after 5 s: one that is about to be closed is not used again.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Exchange:
    """The raw record of one request. Times are in seconds by `time.perf_counter`.

    Attributes:
        sent_s: just before it was sent.
        pieces: what was read, with when.
        end_s: when it was over.
        status: HTTP's; 0 where there was none.
        error: the kind of failure, None where nothing was seen to fail.
        message: the failure in words.
    """

    sent_s: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    end_s: float = 0.0
    status: int = 0
    error: str | None = None
    message: str | None = None


class Connections:
    """Connections to a setting's server: as many as are in use at once, and the one that was free last is used next.

    Each has a separate httpx client. In one client's pool, a request costs time that grows with the square of the
    connections, which the time stamps would show.

    Raises:
        LoadError: The URL or the key is none that a request could be made with.
    """

    def __init__(self, setting: Setting) -> None:
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if setting.api_key:
            if not (setting.api_key.isascii() and setting.api_key.isprintable()):
                raise LoadError(f"{setting.name}: the API key has characters that no header can hold")
            headers["Authorization"] = f"Bearer {setting.api_key}"
        self._headers = headers
        self._url = _url(setting)
        self._tls: ssl.SSLContext | bool = self._url.scheme == "https" and httpx.create_ssl_context()
        self._all: list[httpx.AsyncClient] = []
        self._free: list[httpx.AsyncClient] = []

    @contextmanager
    def one(self) -> Iterator[httpx.AsyncClient]:
        """A connection, for one request at a time."""
        client = self._free.pop() if self._free else self._opened()
        try:
            yield client
        finally:
            self._free.append(client)

    async def aclose(self) -> None:
        """Close them all."""
        for client in self._all:
            await client.aclose()

    def _opened(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            verify=self._tls,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
            trust_env=False,
        )
        self._all.append(client)
        return client


def _url(setting: Setting) -> httpx.URL:
    """The setting's URL, if it is one that a connection can be tried with."""
    try:
        url = httpx.URL(setting.url)
        url.host.encode("idna")  # which looking the host up would do, and fail at
    except (httpx.InvalidURL, UnicodeError) as error:
        raise LoadError(f"{setting.name}: {setting.url!r} is no URL: {error}") from None
    if url.port is not None and url.port > 65535:
        raise LoadError(f"{setting.name}: {setting.url!r}: expected a port up to 65535")
    return url


def body_of(prompt: LoadPrompt, setting: Setting, model: str, options: LoadOptions) -> bytes:
    """The request's body."""
    body: dict[str, Any] = {"model": model}
    if options.endpoint == "chat":
        body["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
    else:
        body["prompt"] = prompt.text
    body["max_tokens"] = prompt.max_tokens or options.max_tokens
    if options.temperature is not None:
        body["temperature"] = options.temperature
    usage: Mapping[str, Any] = {"include_usage": True}
    return json.dumps(
        body | {"stream": True, "stream_options": usage} | setting.body | dict(options.body)
    ).encode()


async def exchange(connections: Connections, path: str, body: bytes, timeout_s: float) -> Exchange:
    """Send a request and read its answer to the end. Failures are kept in what is returned.

    A cancelled exchange returns, too, with the error "interrupted", so that no request is lost from the record.
    """
    seen = Exchange(time.perf_counter())
    try:
        with connections.one() as client:
            async with asyncio.timeout(timeout_s), client.stream("POST", path, content=body) as response:
                seen.status = response.status_code
                await _read(response, seen)
    except TimeoutError:
        seen.error, seen.message = "timeout", f"no whole answer within {timeout_s:g} s"
    except asyncio.CancelledError:
        seen.error = INTERRUPTED
    except httpx.HTTPError as error:
        kind = "broken stream" if seen.status else "connection"
        seen.error, seen.message = kind, f"{type(error).__name__}: {error}"
    seen.end_s = time.perf_counter()
    return seen


async def _read(response: httpx.Response, seen: Exchange) -> None:
    room = MAX_ANSWER_BYTES if seen.status == 200 else MAX_REFUSAL_BYTES
    clock, keep = time.perf_counter, seen.pieces.append
    async for piece in response.aiter_raw():
        keep((clock(), piece))
        room -= len(piece) + PIECE_BYTES
        if room < 0:
            if seen.status == 200:
                seen.error, seen.message = "bad answer", f"an answer of more than {MAX_ANSWER_BYTES} bytes"
            return
