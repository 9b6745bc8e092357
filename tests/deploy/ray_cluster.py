"""A Ray cluster of one node for a test, with ports, a folder and a token of its own, and load on what it serves."""

import asyncio
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

BIN = Path(sys.executable).parent
START_S = 600
"""How long an engine may take to start, also beside others on a busy machine."""

PAUSE_S = 0.2
"""Between a worker's requests, so that engines that start get some of the processor."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class Cluster:
    """A node that runs, and how to ask it."""

    dashboard: str
    url: str
    token: str
    environment: Mapping[str, str]
    folder: Path

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Send a Serve config, as operators do."""
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        command = [str(BIN / "serve"), "deploy", "--address", self.dashboard, str(path)]
        subprocess.run(command, check=True, env=dict(self.environment), capture_output=True, timeout=120)

    def application(self) -> dict[str, Any]:
        """What Ray says about the application."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()["applications"].get("eft", {})

    def replicas(self) -> dict[int, str]:
        """The state of each replica, by its process id."""
        deployments = self.application().get("deployments", {})
        replicas = deployments.get("eft", {}).get("replicas", [])
        return {replica["pid"]: replica["state"] for replica in replicas if replica.get("pid")}

    def running(self) -> set[int]:
        """The replicas that serve."""
        return {pid for pid, state in self.replicas().items() if state == "RUNNING"}

    def wait_for(self, holds: Callable[[set[int]], bool], what: str) -> set[int]:
        """Wait until something holds for the replicas that serve, and return them."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            application = self.application()
            if application.get("status") == "DEPLOY_FAILED":
                pytest.fail(application["message"])
            running = self.running()
            if holds(running):
                return running
            time.sleep(0.5)
        pytest.fail(f"{what} did not happen; replicas: {self.replicas()}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a node and stop it, with all that it runs."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("ray-client-server-port", "metrics-export-port", "runtime-env-agent-port")
    *ports, http = free_ports(len(names) + 1)
    # Sockets lie in it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="eft-ray-", dir="/tmp"))
    token = secrets.token_hex(32)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--temp-dir", str(folder / "ray")]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--include-dashboard=true", "--disable-usage-stats"]
    command += ["--num-cpus=4", "--num-gpus=0", "--object-store-memory=80000000"]
    log = folder / "log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    everything: set[psutil.Process] = set()
    try:
        address = f"http://127.0.0.1:{ports[1]}"
        made = Cluster(address, f"http://127.0.0.1:{http}", token, environment, folder)
        _wait_until_up(made, head, log)
        yield made
    finally:
        everything.update(psutil.Process(head.pid).children(recursive=True))
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        _, left = psutil.wait_procs(everything, timeout=60)
        for process in left:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"outlived the node: {left}"


def _wait_until_up(made: Cluster, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            made.application()
        except httpx.HTTPError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"Ray did not start:\n{log.read_text()[-4000:]}")


@dataclass(frozen=True)
class Answered:
    """One request under load, and what became of it; times are those of the monotonic clock."""

    weight: float
    began_s: float
    ended_s: float
    text: str
    error: str
    scale: float


@dataclass
class Load:
    """Requests of several workers, each of which waits for its answer, until it is told to stop."""

    url: str
    key: str
    question: str
    weights: Sequence[float]
    answered: list[Answered] = field(default_factory=list)
    going: bool = True

    async def _worker(self, client: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        while self.going:
            weight = chance.choice(list(self.weights))
            began_s = time.monotonic()
            text, error, scale = "", "", 0.0
            try:
                text, scale = await self._ask(client, weight, streams=chance.random() < 0.5)
            except (httpx.HTTPError, AssertionError, KeyError, ValueError) as problem:
                error = repr(problem)
            self.answered.append(Answered(weight, began_s, time.monotonic(), text, error, scale))
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, client: httpx.AsyncClient, weight: float, *, streams: bool) -> tuple[str, float]:
        body = asked(self.question, weight)
        if not streams:
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"]["content"], answer.json()["eft"]["scale"]
        async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
            assert answer.status_code == 200, await answer.aread()
            events = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
        assert events and events[-1] == "[DONE]", "the stream broke off"
        chunks = [yaml.safe_load(event) for event in events[:-1]]
        pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        return "".join(pieces), chunks[0]["eft"]["scale"]

    def failed(self) -> list[Answered]:
        """The requests that were not answered."""
        return [one for one in self.answered if one.error]


def asked(question: str, weight: float) -> dict[str, Any]:
    """A greedy request with these weights."""
    weights = {"helpful": 1 - weight, "harmless": weight}
    message = {"role": "user", "content": question}
    return {"messages": [message], "temperature": 0, "max_tokens": 48, "eft": {"weights": weights}}


@asynccontextmanager
async def under_load(load: Load, workers: int) -> AsyncIterator[Load]:
    """Send requests while the block runs, and wait for their answers."""
    headers = {"Authorization": f"Bearer {load.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=load.url, headers=headers, timeout=START_S, limits=limits
    ) as client:
        tasks = [asyncio.create_task(load._worker(client, number)) for number in range(workers)]
        try:
            yield load
        finally:
            load.going = False
            await asyncio.gather(*tasks)
