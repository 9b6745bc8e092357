"""Servers that are told to stop, whose engine is stopped or killed, and that are supervised."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from .conftest import Server, start_server, stop_server, until_status

LONG = {"prompt": "Hello", "max_tokens": 100, "ignore_eos": True, "temperature": 0}


class Stream:
    """A stream that is read in a thread, until it ends."""

    def __init__(self, server: Server, body: dict[str, object]) -> None:
        self.events: list[str] = []
        self.began = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(server.url, body))
        self._thread.start()
        assert self.began.wait(30)

    def _read(self, url: str, body: dict[str, object]) -> None:
        whole = body | {"stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=whole, timeout=60) as answer:
            for line in answer.iter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                    self.began.set()

    def error(self) -> str:
        """The error in its last event but one."""
        self._thread.join(60)
        assert self.events[-1] == "[DONE]"
        message: str = json.loads(self.events[-2])["error"]["message"]
        return message

    def is_whole(self) -> bool:
        self._thread.join(60)
        return self.events[-1] == "[DONE]" and "error" not in json.loads(self.events[-2])


def processes(server: Server, title: str) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if child.name().startswith(f"VLLM::{title}")]


@pytest.fixture(scope="module")
def supervised(family_file: Path) -> Iterator[Server]:
    """Every test leaves it serving."""
    server = start_server(str(family_file), "--supervise", "--set", "server.drain_s=3")
    yield server
    server.process.kill()


def test_an_engine_that_is_stopped_is_seen_its_streams_end_and_it_may_go_on(supervised: Server) -> None:
    stream = Stream(supervised, LONG | {"max_tokens": 1000})
    [stopped] = processes(supervised, "EngineCore")
    stopped.suspend()
    try:
        for path in ("/livez", "/health", "/readyz"):
            answer = until_status(supervised.url + path, 503, 10)
        assert f"process {stopped.pid} is stopped" in stream.error()
        refused = httpx.post(f"{supervised.url}/v1/completions", json=LONG, timeout=10)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "unavailable"
    finally:
        stopped.resume()
    until_status(f"{supervised.url}/readyz", 200, 10)
    assert httpx.post(f"{supervised.url}/v1/completions", json=LONG, timeout=60).status_code == 200


def test_a_supervised_server_whose_engine_is_killed_comes_back(supervised: Server) -> None:
    before = httpx.post(f"{supervised.url}/v1/completions", json=LONG, timeout=60).json()["choices"]
    [core] = processes(supervised, "EngineCore")
    core.kill()
    answer = until_status(f"{supervised.url}/livez", 503, 10)
    deadline, refused = time.monotonic() + 120, [answer]
    while answer.status_code != 200 or processes(supervised, "EngineCore") == []:
        assert time.monotonic() < deadline
        answer = httpx.post(f"{supervised.url}/v1/completions", json=LONG, timeout=60)
        refused.append(answer)
        time.sleep(0.2)
    assert {answer.status_code for answer in refused} == {200, 503}
    starting = [answer for answer in refused if "The server is starting" in answer.text]
    assert starting and all(int(answer.headers["retry-after"]) > 0 for answer in starting)
    assert answer.json()["choices"] == before
    assert "starting it again in 1 s" in "".join(supervised.lines)


def test_a_signal_lets_requests_finish_and_then_ends_them_in_words(supervised: Server) -> None:
    """The last test of this server."""
    left = psutil.Process(supervised.process.pid).children(recursive=True)
    short = Stream(supervised, LONG | {"max_tokens": 8})
    many = [Stream(supervised, LONG | {"max_tokens": 1000, "n": 4, "temperature": 1}) for _ in range(3)]
    supervised.process.terminate()
    assert short.is_whole()
    for stream in many:
        assert stream.error() == "The server is stopping; the answer is not complete."
    assert supervised.process.wait(60) == 0
    assert psutil.wait_procs(left, timeout=10)[1] == []
    said = "".join(supervised.lines)
    assert "requests have ended, or in 3 s (SIGTERM; another one: at once)" in said
    assert "Ending 3 requests with an error" in said
    stopping = said[said.index("Stopping once") :]
    assert "Traceback" not in stopping
    assert "resource_tracker" not in stopping


def test_a_second_signal_ends_a_server_at_once_and_one_without_engine_ends_with_status_1(
    family_file: Path,
) -> None:
    server = start_server(str(family_file), "--set", "server.drain_s=3600")
    left = psutil.Process(server.process.pid).children(recursive=True)
    with contextlib.closing(httpx.Client(timeout=60)):
        stream = Stream(server, LONG | {"max_tokens": 1000, "n": 4, "temperature": 1})
        server.process.terminate()
        until_status(f"{server.url}/readyz", 503, 10)
        os.kill(server.process.pid, signal.SIGINT)
        assert stream.error() == "The server is stopping; the answer is not complete."
        assert server.process.wait(30) == 128 + signal.SIGINT
    assert psutil.wait_procs(left, timeout=10)[1] == []
    assert stop_server(server) == 128 + signal.SIGINT
