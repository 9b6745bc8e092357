"""Replicas of the demo family behind Ray Serve on this machine: autoscaling, failures and updates under load."""

import asyncio
import copy
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from .ray_cluster import Cluster, Load, asked, cluster, under_load

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

SERVE_CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"
KEY = "a-key-of-the-test"
QUESTION = "How could I build the goblin soap?"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
WORKERS = 6
BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node that serves one replica of the demo family, and may have two."""
    with cluster() as made:
        made.deploy(_config(made, tmp_path_factory.mktemp("keys")))
        made.wait_for(lambda running: len(running) == 1, "a replica")
        yield made


def _config(made: Cluster, folder: Path) -> dict[str, Any]:
    """The repository's config for this machine; it scales up at once, and not down."""
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": int(made.url.rpartition(":")[2])}
    [application] = config["applications"]
    application["args"] |= {"max_replicas": 2, "target_ongoing_requests": 2, "api_key_file": str(keys)}
    [deployment] = application["deployments"]
    deployment["request_router_config"] = {"request_router_class": BY_SESSION}
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    deployment["autoscaling_config"] = scaling | {
        "upscale_delay_s": 1,
        "downscale_delay_s": 600,
        "look_back_period_s": 12,
    }
    return config


@pytest.fixture(scope="module")
def client(node: Cluster) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=node.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client: httpx.Client) -> dict[float, str]:
    """What one replica answers without load, by weight."""
    return {weight: _answer(client, weight)["choices"][0]["message"]["content"] for weight in WEIGHTS}


def _answer(client: httpx.Client, weight: float) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json=asked(QUESTION, weight))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_replica_answers_as_eft_serve_does(client: httpx.Client, expected: dict[float, str]) -> None:
    assert _answer(client, 0.25)["eft"]["weights"] == {"helpful": 0.75, "harmless": 0.25}
    assert len(set(expected.values())) > 1
    models = {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert {"demo", "demo/base", "demo-harmless"} <= models
    answer = client.get("/v1/models", headers={"X-Request-Id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_its_refusals_are_those_of_eft_serve(node: Cluster, client: httpx.Client) -> None:
    answer = httpx.post(f"{node.url}/v1/chat/completions", json=asked(QUESTION, 0.5))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "needs an API key" in answer.json()["error"]["message"]
    assert httpx.get(f"{node.url}/health").status_code == 200
    answer = client.post("/v1/chat/completions", json=asked(QUESTION, 5.0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_behaviour")
    answer = client.post("/v1/chat/completions", json=asked(QUESTION, 0.5) | {"best_of": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "best_of")
    large = asked("?" * (3 << 20), 0.5)
    answer = client.post("/v1/chat/completions", json=large)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_stream_arrives_as_it_is_generated_and_ends_with_its_client(client: httpx.Client) -> None:
    most = 400
    before = _metric(client, "vllm:generation_tokens_total")
    body = asked(QUESTION, 0.5) | {"stream": True, "ignore_eos": True, "max_tokens": most}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        events = (line for line in answer.iter_lines() if line.startswith("data: "))
        pieces = [json.loads(next(events)[6:])["choices"][0]["delta"] for _ in range(6)]
    assert [len(piece.get("content", "").split()) for piece in pieces] == [0, 1, 1, 1, 1, 1]
    while _metric(client, "vllm:num_requests_running"):
        pass
    assert 5 <= _metric(client, "vllm:generation_tokens_total") - before < most


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}{{")]
    return float(line.rpartition(" ")[2])


async def test_a_second_replica_starts_under_load_and_answers_the_same(
    node: Cluster, client: httpx.Client, expected: dict[float, str]
) -> None:
    async with under_load(Load(node.url, KEY, QUESTION, WEIGHTS), WORKERS) as load:
        await asyncio.to_thread(node.wait_for, lambda running: len(running) == 2, "a second replica")
        counted = set()
        while len(counted) < 2:  # Each of the two has answered /metrics, and has generated.
            lines = (await asyncio.to_thread(client.get, "/metrics")).text.splitlines()
            facts = dict(line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
            if any(name.startswith("vllm:generation_tokens_total") and float(facts[name]) for name in facts):
                counted.add(facts["process_start_time_seconds"])
    assert load.failed() == []
    assert {one.weight for one in load.answered} == set(WEIGHTS)
    for one in load.answered:
        assert one.text == expected[one.weight]


def test_a_session_stays_with_its_replica(node: Cluster, client: httpx.Client) -> None:
    node.wait_for(lambda running: len(running) == 2, "two replicas")
    started: dict[str, set[str]] = {}
    for number in range(40):
        session = f"session-{number % 8}"
        lines = client.get("/metrics", headers={"X-Session-Id": session}).text.splitlines()
        [line] = [line for line in lines if line.startswith("process_start_time_seconds ")]
        started.setdefault(session, set()).add(line)
    assert {len(replicas) for replicas in started.values()} == {1}
    assert len(set.union(*started.values())) == 2


async def test_a_replica_killed_under_load_takes_only_its_own_requests_with_it(
    node: Cluster, expected: dict[float, str]
) -> None:
    victim = min(node.wait_for(lambda running: len(running) == 2, "two replicas"))
    engines = psutil.Process(victim).children(recursive=True)
    assert engines
    async with under_load(Load(node.url, KEY, QUESTION, WEIGHTS), WORKERS) as load:
        while len(load.answered) < 2 * WORKERS:
            await asyncio.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(
            node.wait_for, lambda running: len(running) == 2 and victim not in running, "a replacement"
        )
        count = len(load.answered)
        while len(load.answered) < count + 2 * WORKERS:
            await asyncio.sleep(0.05)
    failed = load.failed()
    print(f"a replica killed: {len(failed)} of {len(load.answered)} requests failed")
    assert len(failed) <= WORKERS
    assert not [one for one in load.answered[count:] if one.error]
    assert all(one.text == expected[one.weight] for one in load.answered if not one.error)
    _, left = psutil.wait_procs(engines, timeout=30)
    assert not left


def test_a_replica_whose_engine_died_is_replaced(
    node: Cluster, client: httpx.Client, expected: dict[float, str]
) -> None:
    victim = min(node.wait_for(lambda running: len(running) == 2, "two replicas"))
    for process in psutil.Process(victim).children(recursive=True):
        process.kill()
    node.wait_for(lambda running: len(running) == 2 and victim not in running, "a replacement")
    assert {
        weight: _answer(client, weight)["choices"][0]["message"]["content"] for weight in WEIGHTS
    } == expected


async def test_an_update_under_load_loses_no_request(
    node: Cluster, expected: dict[float, str], tmp_path: Path
) -> None:
    old = node.wait_for(lambda running: len(running) == 2, "two replicas")
    config = copy.deepcopy(_config(node, tmp_path))
    [application] = config["applications"]
    application["args"]["overrides"] = ["defaults.scale=0.5"]
    async with under_load(Load(node.url, KEY, QUESTION, WEIGHTS), WORKERS) as load:
        await asyncio.to_thread(node.deploy, config)
        await asyncio.to_thread(
            node.wait_for,
            lambda running: len(running) == 2 and not node.replicas().keys() & old,
            "new ones",
        )
        count = len(load.answered)
        while len(load.answered) < count + 2 * WORKERS:
            await asyncio.sleep(0.05)
    print(f"an update: {len(load.failed())} of {len(load.answered)} requests failed")
    assert load.failed() == []
    assert [one.scale for one in load.answered[:WORKERS]] == [1.0] * WORKERS
    assert {one.scale for one in load.answered[count + WORKERS :]} == {0.5}
    assert all(one.text == expected[one.weight] for one in load.answered if one.scale == 1.0)
