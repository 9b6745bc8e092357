"""What one client may cost: in process where that shows it, over real sockets where only those do."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from eft_server.api.app import create_app
from eft_server.api.edge import connection
from eft_server.api.edge.connection import Connection

from .fake_engine import FakeEngine
from .served import client_of, family

pytestmark = pytest.mark.asyncio

PROMPT = {"prompt": "Hi", "max_tokens": 8}
JSON = {"content-type": "application/json"}


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, **options: Any) -> AsyncIterator[int]:
    """The port of a real server for this application."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        config = uvicorn.Config(
            app, http=Connection, lifespan="off", log_level="critical", timeout_graceful_shutdown=1, **options
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


@pytest_asyncio.fixture
async def port(engine: FakeEngine) -> AsyncIterator[int]:
    app = create_app(
        engine,
        family(body_timeout_s=0.3, request_timeout_s=2.0, max_concurrent_requests=2, max_waiting_requests=0),
    )
    async with listening(app) as port:
        yield port


async def exchange(port: int, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes, keep the connection open, and return the status and the JSON that come back before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    received = await asyncio.wait_for(reader.read(), timeout=5)
    writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def head(length: int, *more: str, path: str = "/v1/completions") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, *more, "", ""]).encode()


async def eventually(condition: Any) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_half_sent_body_is_given_up_on_and_its_connection_closed(port: int) -> None:
    status, body = await exchange(port, head(100) + b'{"prompt": ')
    assert (status, body["error"]["code"]) == (408, "request_timeout")


async def test_a_body_that_trickles_in_does_not_buy_time(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(1000))
    answer = asyncio.create_task(reader.readline())
    started = asyncio.get_running_loop().time()
    while not answer.done():
        writer.write(b" ")
        await asyncio.sleep(0.02)
    assert b" 408 " in await answer
    assert asyncio.get_running_loop().time() - started < 1.5
    writer.close()


async def test_half_sent_headers_are_given_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost:")
    assert await asyncio.wait_for(reader.read(), timeout=3) == b""
    writer.close()


class _Endless:
    """An application whose answer has no end, and which notes how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 10_000
                    await asyncio.sleep(0)
            finally:
                self.ended.set()

        await StreamingResponse(events())(scope, receive, send)


async def reading(port: int, bytes_at_once: int, pause_s: float) -> AsyncIterator[int]:
    """Ask for an answer, with little room for what has not been read; so many bytes have come at a time."""
    with contextlib.closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        while True:
            yield len(await loop.sock_recv(client, bytes_at_once)) if bytes_at_once else 0
            await asyncio.sleep(pause_s)


@pytest.mark.parametrize("bytes_at_once", [0, 1], ids=["nothing", "a byte at a time"])
async def test_a_client_that_does_not_read_loses_its_connection(
    bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    app = _Endless()
    async with listening(app) as port:
        with contextlib.suppress(ConnectionError):
            async for _ in reading(port, bytes_at_once, pause_s=0.05):
                if app.ended.is_set():
                    break
        async with asyncio.timeout(5):
            await app.ended.wait()


class _Brief:
    """An application whose answer is small."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(iter([b"x" * 40_000]))(scope, receive, send)


@pytest.mark.parametrize("ending", ["Connection: close", "Connection: keep-alive"])
async def test_an_answer_that_fits_into_the_buffer_and_is_not_read_loses_its_connection(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.2)
    made: list[Connection] = []

    def note(self: Connection) -> None:
        made.append(self)

    monkeypatch.setattr(Connection, "_expect_headers", note)
    async with listening(_Brief(), timeout_keep_alive=1) as port:
        with contextlib.closing(socket.socket()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            await eventually(lambda: made)
            theirs = made[0].transport.get_extra_info("socket")
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.sendall(f"GET / HTTP/1.1\r\nHost: a\r\n{ending}\r\n\r\n".encode())
            await eventually(made[0].transport.get_write_buffer_size)
            await eventually(lambda: not made[0].connections)


async def test_a_next_request_does_not_hide_that_the_client_has_left() -> None:
    heard: list[str] = []

    async def thinking(scope: Any, receive: Any, send: Any) -> None:
        while heard[-1:] != ["http.disconnect"]:
            heard.append((await receive())["type"])

    async with listening(thinking) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: heard)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.close()
        await eventually(lambda: "http.disconnect" in heard)


async def test_a_body_that_is_not_taken_is_not_held_either() -> None:
    heard: list[Any] = []
    sent: list[int] = []

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope)
        await asyncio.Event().wait()

    async with listening(busy) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(1 << 40))
        await eventually(lambda: heard)
        writer.transport.set_write_buffer_limits(0)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(2):
                while len(sent) < 64:  # What systems hold is some megabytes.
                    writer.write(b" " * (1 << 20))
                    await writer.drain()
                    sent.append(1)
        assert len(sent) < 64
        writer.transport.abort()


async def test_requests_that_come_early_are_answered_in_turn(engine: FakeEngine) -> None:
    body = json.dumps(PROMPT).encode()
    async with listening(create_app(engine, family())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((head(len(body)) + body) * 20)
        for _ in range(20):
            headers = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout=5)
            assert b" 200 " in headers
            length = int(headers.lower().partition(b"content-length:")[2].split()[0])
            assert b"choices" in await reader.readexactly(length)
        writer.close()


async def test_who_is_refused_before_the_body_is_read_cannot_go_on_sending(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 0.3)
    async with listening(create_app(engine, family(), api_keys=["one"])) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(1000))
        assert b" 401 " in await asyncio.wait_for(reader.readline(), timeout=5)
        ended = asyncio.create_task(reader.read())
        async with asyncio.timeout(5):
            while not ended.done():
                writer.write(b" ")
                await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionError):
            await ended


async def test_a_refused_body_takes_no_time_from_the_next_request(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 1.0)
    async with listening(create_app(engine, family(), api_keys=["one"])) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(1000))
        assert b" 401 " in await asyncio.wait_for(reader.readline(), timeout=5)
        await reader.readuntil(b"}}")
        for sent in (b" ", b" " * 999 + head(0)[:20], head(0)[20:]):
            writer.write(sent)
            await asyncio.sleep(0.7)
        assert b" 401 " in await asyncio.wait_for(reader.readline(), timeout=5)
        writer.close()


async def test_a_client_that_reads_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    app, stop = _Endless(), asyncio.get_running_loop().time() + 1.5
    async with listening(app) as port:
        async for count in reading(port, 65_536, pause_s=0.05):
            assert count > 0
            if asyncio.get_running_loop().time() > stop:
                break
        assert not app.ended.is_set()


async def test_a_declared_size_beyond_the_limit_is_refused_unread(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(10**12))
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), timeout=5)
    assert b" 413 " in answer
    assert b'"code":"request_too_large"' in answer
    writer.close()


async def test_who_sends_too_much_is_told_so(port: int) -> None:
    """A client that writes the whole body before it reads must not find the connection reset."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            response = await client.post("/v1/completions", content=b" " * 8_000_000, headers=JSON)
            assert response.status_code == 413


async def test_what_is_not_http_gets_the_error_shape(port: int) -> None:
    status, body = await exchange(port, b"nonsense\r\n\r\n")
    assert (status, body["error"]["code"]) == (400, "invalid_http")


async def test_what_is_not_http_gets_an_id_to_look_for(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"nonsense\r\n\r\n")
    assert b"\r\nx-request-id: req_" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout=5)
    writer.close()


async def test_a_connection_serves_several_requests(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200


async def test_a_chunked_body_beyond_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    response = await client.post("/v1/completions", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert "20000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "text/plain"}, JSON | {"content-encoding": "gzip"}, {"content-type": "a/json"}],
)
async def test_only_plain_json_is_read(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post("/v1/completions", content=json.dumps(PROMPT), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


async def test_a_charset_in_the_content_type_does_no_harm(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await client.post("/v1/completions", content=json.dumps(PROMPT), headers=headers)
    assert response.status_code == 200


async def test_requests_beyond_the_places_are_told_to_come_back(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    async with client_of(
        create_app(engine, family(max_concurrent_requests=2, max_waiting_requests=0))
    ) as client:
        answers = await asyncio.gather(*(client.post("/v1/completions", json=PROMPT) for _ in range(3)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 1
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200


async def test_a_thousand_streams_at_once_wait_for_their_turn(engine: FakeEngine) -> None:
    engine.pause_s = 0.001
    options = family(max_concurrent_requests=64, max_sequences=16)
    async with client_of(create_app(engine, options)) as client:
        asked = PROMPT | {"stream": True, "max_tokens": 2}
        answers = await asyncio.gather(*(client.post("/v1/completions", json=asked) for _ in range(1000)))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert engine.most_running == 16


async def test_who_waits_too_long_is_told_to_come_back(engine: FakeEngine) -> None:
    engine.pause_s = 0.1
    options = family(max_concurrent_requests=1, waiting_timeout_s=0.2)
    async with client_of(create_app(engine, options)) as client:
        first, second = await asyncio.gather(*(client.post("/v1/completions", json=PROMPT) for _ in range(2)))
        assert (first.status_code, second.status_code) == (200, 429)
        assert second.headers["retry-after"] == "1"
        assert "0.2 seconds" in second.json()["error"]["message"]
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200


async def test_a_client_that_leaves_does_not_wait_on(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    app = create_app(engine, family(max_concurrent_requests=1))
    body = json.dumps(PROMPT).encode()
    async with listening(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        busy = asyncio.create_task(client.post("/v1/completions", json=PROMPT))
        await eventually(lambda: engine.asked)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(body)) + body)
        await asyncio.sleep(0.1)
        writer.close()
        assert (await busy).status_code == 200
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    assert len(engine.asked) == 2


async def test_choices_and_prompts_are_sequences(engine: FakeEngine) -> None:
    engine.pause_s = 0.01
    async with client_of(create_app(engine, family(max_sequences=6))) as client:
        several = PROMPT | {"prompt": ["a", "b", "c"], "n": 4}
        response = await client.post("/v1/completions", json=several)
    assert len(response.json()["choices"]) == 12
    assert engine.most_running == 1


async def test_tokens_that_may_come_count(engine: FakeEngine) -> None:
    engine.pause_s = 0.01
    async with client_of(create_app(engine, family(max_tokens_under_way=20))) as client:
        asked = PROMPT | {"max_tokens": 8}
        await asyncio.gather(*(client.post("/v1/completions", json=asked) for _ in range(4)))
        assert engine.most_running == 2
        alone = await client.post("/v1/completions", json=PROMPT | {"max_tokens": 100})
    assert alone.status_code == 200


async def test_scores_take_their_turn_too(engine: FakeEngine) -> None:
    engine.pause_s = 0.01
    async with client_of(create_app(engine, family(max_sequences=2))) as client:
        items = [{"prompt": "a", "completion": " fox"}] * 8
        response = await client.post("/v1/eft/score", json={"items": items})
    assert len(response.json()["data"]) == 8
    assert engine.most_running == 2


async def test_bodies_are_bounded_together(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    app = create_app(engine, family(max_body_bytes=1024, max_bytes_under_way=2048))
    large: dict[str, Any] = {"content": json.dumps(PROMPT).ljust(900), "headers": JSON}
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.post("/v1/completions", **large) for _ in range(3)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 1
        assert refused[0].headers["retry-after"] == "1"
        assert (await client.post("/v1/completions", **large)).status_code == 200


async def test_a_key_leaves_room_for_others(engine: FakeEngine) -> None:
    engine.pause_s = 0.1
    options = family(max_concurrent_requests=4, max_waiting_requests=2, key_share=0.5)
    async with client_of(create_app(engine, options, api_keys=["one", "two"])) as client:

        async def ask(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return (await client.post("/v1/completions", json=PROMPT, headers=headers)).status_code

        greedy = [asyncio.create_task(ask("one")) for _ in range(6)]
        await eventually(lambda: engine.running == 2)
        assert await ask("two") == 200
        assert sorted(await asyncio.gather(*greedy)) == [200] * 4 + [429] * 2


async def test_health_and_models_need_no_place(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    async with client_of(create_app(engine, family(max_concurrent_requests=1))) as client:
        busy = asyncio.create_task(client.post("/v1/completions", json=PROMPT))
        await eventually(lambda: engine.asked)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        assert (await busy).status_code == 200


async def test_a_request_that_takes_too_long_is_ended_and_aborted(engine: FakeEngine) -> None:
    engine.pause_s = 0.1
    async with client_of(create_app(engine, family(request_timeout_s=0.25))) as client:
        response = await client.post("/v1/completions", json=PROMPT)
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout_error"
    assert len(engine.aborted) == 1


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(engine: FakeEngine) -> None:
    engine.pause_s = 0.1
    async with client_of(create_app(engine, family(request_timeout_s=0.25))) as client:
        response = await client.post("/v1/completions", json=PROMPT | {"stream": True})
    assert response.status_code == 200
    assert '"type":"timeout_error"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/completions", PROMPT), ("/v1/responses", {"input": "Hi", "max_output_tokens": 8})],
)
async def test_the_engine_stops_working_for_a_client_that_left(
    port: int, engine: FakeEngine, path: str, asked: dict[str, Any], stream: bool
) -> None:
    engine.pause_s = 0.1
    body = json.dumps(asked | {"stream": stream}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(len(body), path=path) + body)
    await eventually(lambda: engine.asked)
    await asyncio.sleep(0.25 if stream else 0)
    writer.close()
    await eventually(lambda: engine.aborted)


async def test_a_place_is_free_again_after_its_client_left(port: int, engine: FakeEngine) -> None:
    engine.pause_s = 0.1
    body = json.dumps(PROMPT | {"stream": True}).encode()
    for round_ in range(1, 4):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(body)) + body)
        await eventually(lambda seen=round_: len(engine.asked) == seen)
        writer.close()
        await eventually(lambda seen=round_: len(engine.aborted) == seen)
