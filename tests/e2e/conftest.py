"""One real server, started with the real command, for the whole session."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from .random_family import write_family

START_TIMEOUT_S = 240


@dataclass
class Server:
    """A running `eft serve` and what it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def read(self, ready: threading.Event) -> None:
        """Collect the output until it ends; the line that names the URL means ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.match(r"Serving '[^']+' at (http://\S+) ", line):
                self.url = found[1]
                ready.set()
        ready.set()


def start_server(family: str, *options: str, environment: Mapping[str, str] | None = None) -> Server:
    """Run `eft serve` on a free port and wait until it is ready."""
    command = [str(Path(sys.executable).with_name("eft")), "serve", family, "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | (environment or {}),
    )
    server = Server(process)
    ready = threading.Event()
    threading.Thread(target=server.read, args=(ready,), daemon=True).start()
    ready.wait(START_TIMEOUT_S)
    if not server.url:
        process.kill()
        pytest.fail("the server did not start:\n" + "".join(server.lines[-40:]))
    return server


def stop_server(server: Server, number: int = signal.SIGTERM) -> int:
    """Send a signal, an interrupt as a terminal does to the whole group, wait, and return the exit status."""
    if number == signal.SIGINT:
        os.killpg(server.process.pid, number)
    else:
        server.process.send_signal(number)
    try:
        return server.process.wait(timeout=60)
    finally:
        server.process.kill()


def until_status(url: str, status: int, most_s: float) -> httpx.Response:
    """Ask again and again until the answer has this status."""
    deadline = time.monotonic() + most_s
    while (answer := httpx.get(url, timeout=10)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer


@pytest.fixture(scope="session")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(family_file: Path) -> Iterator[Server]:
    server = start_server(str(family_file))
    yield server
    assert stop_server(server) == 0


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def async_client(server: Server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
