"""Plain vLLM with our plugins: what `eft vllm-args` prints, the clients, scores, keys, replicas, and how it ends."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from ..e2e import test_client, test_scores
from ..e2e.conftest import Server, stop_server
from ..e2e.random_family import write_family
from ..e2e.vllm_server import free_port, pack, start_vllm, until_ready

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

_OF_A_SERVER = {"server", "client", "asking"}
asking = test_client.asking

globals().update(
    {
        name: test
        for module in (test_scores, test_client)
        for name, test in vars(module).items()
        if name.startswith("test_") and _OF_A_SERVER & set(inspect.signature(test).parameters)
    }
)

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def packed(family_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(family_file, tmp_path_factory.mktemp("packed") / "tiny")


@pytest.fixture(scope="module")
def server(packed: Path) -> Iterator[Server]:
    """Two replicas."""
    server = start_vllm(packed, "--data-parallel-size", "2", "--api-server-count", "1")
    yield server
    stop_server(server)


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_printed_line_serves_in_a_shell_with_keys_and_under_the_hosts_name(
    family_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("of-the-family\n")
    port = free_port()
    settings = [f"server.api_key_file={tmp_path / 'keys'}", f"server.port={port}"]
    eft = str(Path(sys.executable).with_name("eft"))
    command = [eft, "vllm-args", str(family_file), *(word for each in settings for word in ("--set", each))]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip("\n")
    process = subprocess.Popen(
        ["sh", "-c", f"exec env {line} --served-model-name prod --api-key of-the-host --shutdown-timeout 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    server = until_ready(Server(process), port)
    try:
        for key in ("of-the-family", "of-the-host"):
            client = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            answer = client.chat.completions.create(
                model="prod", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
            )
            assert answer.model == "prod"
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{server.url}/v1", api_key="other").models.list()
        _drained(server)
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def _drained(server: Server) -> None:
    """A stream that has begun is answered to its end after SIGTERM."""
    body: dict[str, Any] = {"model": "prod", "prompt": "Hello", "max_tokens": 400, "stream": True}
    headers = {"authorization": "Bearer of-the-host"}
    asked = body | {"ignore_eos": True, "stream_options": {"include_usage": True}}
    begun, events = threading.Event(), list[str]()

    def read() -> None:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=asked, headers=headers, timeout=120
        ) as answer:
            for event in answer.iter_lines():
                events.append(event)
                begun.set()

    reading = threading.Thread(target=read)
    reading.start()
    assert begun.wait(60)
    server.process.send_signal(signal.SIGTERM)  # Not to the engine as well, as a container's host does not.
    reading.join(120)
    said = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert "usage" in said[-1], said[-1]
    assert said[-1]["usage"]["completion_tokens"] == 400
    assert server.process.wait(60) == 0


def test_a_stream_ends_with_an_error_where_the_host_does_not_wait(packed: Path) -> None:
    server = start_vllm(packed)
    try:
        asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 900, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        assert "error" in events[-1]
        assert server.process.wait(60) == 0
    finally:
        server.process.kill()
