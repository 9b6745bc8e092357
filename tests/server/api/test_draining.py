"""How a server ends: new requests are refused, those under way finish or are told, and hosts can see it."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx
import pytest

from eft_server.api import draining, serve
from eft_server.api.app import create_app
from eft_server.api.draining import DrainingServer
from eft_server.api.edge.api_error import ApiError

from .fake_engine import FakeEngine
from .served import family

HALF_SENT = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
TEXT = {"prompt": "Hi", "max_tokens": 400}


class Stopping(NamedTuple):
    server: DrainingServer
    serving: "asyncio.Task[None]"
    client: httpx.AsyncClient
    said: list[str]


@contextlib.asynccontextmanager
async def stopping(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, drain_s: float = 0.5
) -> AsyncIterator[Stopping]:
    """A server whose answers take long, and a client."""
    monkeypatch.setattr(draining, "LAST_WORDS_S", 1.5)
    engine.pause_s = 0.05
    app = create_app(engine, family(max_concurrent_requests=3))
    config = serve._uvicorn_config(app)
    config.log_config = None
    said: list[str] = []
    server = DrainingServer(config, app.state.under_way, drain_s, said.append)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield Stopping(server, serving, client, said)


async def until_running(engine: FakeEngine, count: int) -> None:
    async with asyncio.timeout(10):
        while engine.running < count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("signals", [1, 2])
async def test_no_answer_ends_in_silence_when_the_server_stops(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    asked = (
        ("/v1/completions", TEXT | {"stream": True}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 400, "stream": True}),
        ("/v1/completions", TEXT),
    )
    async with stopping(engine, monkeypatch, 0.5 if signals == 1 else 600) as under_way:
        answers = [asyncio.create_task(under_way.client.post(path, json=body)) for path, body in asked]
        await until_running(engine, len(asked))
        waiting = asyncio.create_task(under_way.client.post("/v1/completions", json=TEXT))
        reader, writer = await asyncio.open_connection("127.0.0.1", under_way.client.base_url.port)
        writer.write(HALF_SENT)
        await asyncio.sleep(0.1)
        for _ in range(signals):
            under_way.server.handle_exit(signal.SIGTERM, None)
        stream, events, whole = await asyncio.gather(*answers)
        half = await asyncio.wait_for(reader.read(), timeout=5)
        await under_way.serving
        writer.close()
    assert stream.status_code == events.status_code == 200
    for text in (stream.text, events.text):
        assert "The server is stopping; the answer is not complete." in text
        assert '"code":"unavailable"' in text
    assert stream.text.endswith("data: [DONE]\n\n")
    assert whole.status_code == (await waiting).status_code == 503
    assert b" 503 " in half.splitlines()[0]
    assert b'"code":"unavailable"' in half
    assert len(engine.aborted) == len(asked)
    assert not [record for record in caplog.records if record.exc_info or "running task" in record.message]
    assert under_way.server.hurried == (signal.SIGTERM if signals == 2 else None)
    assert under_way.said == [
        "Stopping once 5 requests have ended, or in "
        f"{0.5 if signals == 1 else 600:g} s (SIGTERM; another one: at once)",
        "Ending 5 requests with an error",
    ]


async def test_what_is_under_way_finishes_and_nothing_new_begins(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stopping(engine, monkeypatch, 600) as under_way:
        client = under_way.client
        assert (await client.get("/readyz")).status_code == 200
        answer = asyncio.create_task(client.post("/v1/completions", json=TEXT | {"max_tokens": 20}))
        await until_running(engine, 1)
        under_way.server.handle_exit(signal.SIGINT, None)
        async with httpx.AsyncClient(base_url=client.base_url) as another:
            refused = await another.post("/v1/completions", json=TEXT)
            unready, alive = await another.get("/readyz"), await another.get("/livez")
            assert (await another.head("/readyz")).status_code == 503
        assert refused.status_code == unready.status_code == 503
        assert refused.json()["error"]["message"] == "The server is stopping."
        assert unready.json()["error"]["code"] == "unavailable"
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        assert alive.status_code == 200
        whole = await answer
        assert whole.status_code == 200
        assert whole.json()["usage"]["completion_tokens"] == 20
        await under_way.serving
    assert engine.aborted == []
    assert under_way.server.hurried is None


async def test_an_idle_server_stops_at_once(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stopping(engine, monkeypatch, 600) as under_way:
        under_way.server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(under_way.serving, timeout=10)
    assert under_way.said == ["Stopping (SIGTERM; another one: at once)"]


async def test_requests_are_let_in_again_when_a_lost_engine_is_back(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stopping(engine, monkeypatch) as running:
        under_way, client = running.server._under_way, running.client
        answer = asyncio.create_task(client.post("/v1/completions", json=TEXT | {"stream": True}))
        await until_running(engine, 1)
        under_way.end(ApiError("Lost.", status=503))
        assert "Lost." in (await answer).text
        for path in ("/v1/models", "/readyz"):
            assert (await client.get(path)).status_code == 503
        assert (await client.get("/livez")).status_code == 200  # Of this, the engine is asked.
        under_way.resume()
        for path in ("/v1/models", "/readyz"):
            assert (await client.get(path)).status_code == 200
        short = await client.post("/v1/completions", json=TEXT | {"max_tokens": 2})
        assert short.status_code == 200
        running.server.handle_exit(signal.SIGTERM, None)
        await running.serving
