"""What happens around the engine: listening, announcing, keys. Whole runs are tested end to end."""

import asyncio
import contextlib
import json
import shlex
import signal
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx
import pytest

from eft_server.api import serve
from eft_server.api.app import create_app
from eft_server.api.edge.listener import listener_on
from eft_server.errors import ConfigError

from .fake_engine import FakeEngine
from .served import family

HALF_SENT = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


class Stopping(NamedTuple):
    server: serve._Server
    serving: "asyncio.Task[None]"
    client: httpx.AsyncClient


def test_a_taken_port_is_refused_before_the_engine_starts() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            listener_on("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_refused_before_the_engine_starts() -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listener_on("host.invalid", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_announcement_holds_a_command_that_can_be_pasted(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(listener_on(host, 0)) as listener:
        serve._announce(family(), listener, needs_key=True)
    first, second = capsys.readouterr().out.splitlines()
    shown = f"[{host}]" if ":" in host else host
    command = shlex.split(second)
    assert first.startswith(f"Serving 'demo' at http://{shown}:")
    assert command[0] == "curl"
    assert "Authorization: Bearer KEY" in command
    assert json.loads(command[-1])["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.5}


@contextlib.asynccontextmanager
async def stopping(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stopping]:
    """A server with answers under way that take longer than it waits, and a client."""
    monkeypatch.setattr(serve, "GRACE_S", 2)
    monkeypatch.setattr(serve, "LAST_WORDS_S", 1.5)
    engine.pause_s = 0.05
    app = create_app(engine, family(max_concurrent_requests=3))
    config = serve._uvicorn_config(app)
    config.log_config = None
    server = serve._Server(config, app.state.under_way)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield Stopping(server, serving, client)


@pytest.mark.asyncio
@pytest.mark.parametrize("signals", [1, 2])
async def test_no_answer_ends_in_silence_when_the_server_stops(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    text = {"prompt": "Hi", "max_tokens": 400}
    asked = (
        ("/v1/completions", text | {"stream": True}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 400, "stream": True}),
        ("/v1/completions", text),
    )
    async with stopping(engine, monkeypatch) as under_way:
        answers = [asyncio.create_task(under_way.client.post(path, json=body)) for path, body in asked]
        async with asyncio.timeout(10):
            while engine.running < len(asked):
                await asyncio.sleep(0.01)
        waiting = asyncio.create_task(under_way.client.post("/v1/completions", json=text))
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
