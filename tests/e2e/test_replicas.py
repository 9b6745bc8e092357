"""Two replicas of the engine behind one port, through vLLM's own option; both have two ranks and speculate."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from ..engine.reference import Reference
from .conftest import Server, start_server, stop_server, until_status
from .random_family import VOCABULARY, write_checkpoint, write_family

MEMBERS = ("base", "small", "helpful", "harmless", "broken")
COUNT = 10
SETTINGS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (0.3, 1.2)]
SHARED = 300
"""The tokenizer's ids; the rest is padding."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's heads divide by two; the experts' key/value head is copied."""
    path = write_family(tmp_path_factory.mktemp("replicas"))
    heads = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    write_checkpoint(path.parent / "base", 0, num_hidden_layers=3, **heads)
    return path


@pytest.fixture(scope="module")
def replicas(family: Path) -> Iterator[Server]:
    options = ("--set", "speculative={draft: helpful, tokens: 2}", "--set", "vllm.tensor_parallel_size=2")
    # Seven processes start to compute at once on a few cores.
    options += ("--set", "server.body_timeout_s=30")
    shared = set(os.listdir("/dev/shm"))
    server = start_server(str(family), *options, "--", "--data-parallel-size", "2")
    yield server
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len([process for process in processes if "Worker" in process.name()]) == 4
    assert stop_server(server) == 0
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert [
        name for name in set(os.listdir("/dev/shm")) - shared if "cpushm" in name and not mapped(name)
    ] == []


def mapped(name: str) -> bool:
    """Whether a process has this shared memory; other tests may have ranks of their own at the same time."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if name in maps.read_text():
                return True
    return False


@pytest.fixture(scope="module")
def reference(family: Path) -> Reference:
    return Reference([family.parent / name for name in MEMBERS], VOCABULARY, SHARED)


def complete(
    server: Server, prompt: list[int], setting: tuple[float, float], model: str = "tiny"
) -> list[int]:
    """The tokens of one greedy completion."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": COUNT, "ignore_eos": True}
    weights = dict(zip(("helpful", "harmless"), setting, strict=True))
    extra = {"return_token_ids": True} | ({"eft": {"weights": weights}} if model == "tiny" else {})
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


def test_metrics_tell_whose_drafts_were_right(replicas: Server) -> None:
    complete(replicas, [7, 8, 9], (0.7, 0.3))
    for _ in range(3):
        complete(replicas, [7, 8, 9], (0, 0), model="tiny/helpful")
    assert drafts(replicas, "tiny")["draft"] > 0
    own = drafts(replicas, "tiny/helpful")
    assert own["requests"] == 3
    assert 0.8 < own["accepted"] / own["draft"] <= 1, "the draft is the very member that was asked for"


def test_what_speculation_rules_out_is_refused_in_words(replicas: Server) -> None:
    body = {"model": "tiny", "prompt": [7, 8], "max_tokens": 2, "min_p": 0.5}
    answer = httpx.post(f"{replicas.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert "min_p" in answer.json()["error"]["message"]


def drafts(server: Server, model: str) -> dict[str, float]:
    """What the server counted for one model name."""
    metrics = httpx.get(f"{server.url}/metrics").text
    names = {"requests": "requests", "draft": "draft_tokens", "accepted": "accepted_tokens"}
    found = {
        key: re.search(rf'^eft:{name}_total\{{model="{model}"\}} (\S+)$', metrics, re.MULTILINE)
        for key, name in names.items()
    }
    return {key: float(match[1]) if match else 0.0 for key, match in found.items()}


def generated_tokens(server: Server) -> dict[str, float]:
    """By replica, from the server's metrics."""
    metrics = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^vllm:generation_tokens_total\{engine="(\d+)".*\} (\S+)$', metrics, re.MULTILINE)
    return {engine: float(count) for engine, count in found}


def test_a_rank_that_is_stopped_is_seen(replicas: Server) -> None:
    children = psutil.Process(replicas.process.pid).children(recursive=True)
    worker = next(child for child in children if "Worker" in child.name())
    worker.suspend()
    try:
        answer = until_status(f"{replicas.url}/livez", 503, 10)
    finally:
        worker.resume()
    assert f"process {worker.pid} is stopped" in answer.json()["error"]["message"]
    until_status(f"{replicas.url}/readyz", 200, 10)
