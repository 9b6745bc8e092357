"""Two replicas of the engine behind one port, through vLLM's own option."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from ..engine.reference import Reference
from .conftest import Server, start_server, stop_server
from .random_family import VOCABULARY

MEMBERS = ("base", "small", "helpful", "harmless", "broken")
COUNT = 10
SETTINGS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (0.3, 1.2)]
SHARED = 300
"""The tokenizer's ids; the rest is padding."""


@pytest.fixture(scope="module")
def replicas(family_file: Path) -> Iterator[Server]:
    server = start_server(str(family_file), "--", "--data-parallel-size", "2")
    yield server
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len([process for process in processes if "Worker" in process.name()]) == 2
    assert stop_server(server) == 0
    assert psutil.wait_procs(processes, timeout=20)[1] == []


@pytest.fixture(scope="module")
def reference(family_file: Path) -> Reference:
    return Reference([family_file.parent / name for name in MEMBERS], VOCABULARY, SHARED)


def complete(server: Server, prompt: list[int], setting: tuple[float, float]) -> list[int]:
    """The tokens of one greedy completion."""
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": COUNT, "ignore_eos": True}
    weights = dict(zip(("helpful", "harmless"), setting, strict=True))
    extra = {"return_token_ids": True, "eft": {"weights": weights}}
    answer = httpx.post(f"{server.url}/v1/completions", json=body | extra, timeout=120)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def coefficients(helpful: float, harmless: float) -> list[float]:
    return [1.0, -helpful - harmless, helpful, harmless, 0.0]


def test_requests_spread_over_the_replicas_and_each_gets_its_own_weights(
    replicas: Server, reference: Reference
) -> None:
    jobs = [([5 + i, 40 + i, 90 + 7 * i], SETTINGS[i % len(SETTINGS)]) for i in range(20)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(lambda job: complete(replicas, *job), jobs))
    for (prompt, setting), tokens in zip(jobs, answers, strict=True):
        assert tokens == reference.greedy(prompt, coefficients(*setting), COUNT)
    generated = generated_tokens(replicas)
    assert set(generated) == {"0", "1"}
    assert sum(generated.values()) == COUNT * len(jobs)
    assert min(generated.values()) > 0


def generated_tokens(server: Server) -> dict[str, float]:
    """By replica, from the server's metrics."""
    metrics = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^vllm:generation_tokens_total\{engine="(\d+)".*\} (\S+)$', metrics, re.MULTILINE)
    return {engine: float(count) for engine, count in found}
