"""What /metrics tells an operator that vLLM does not: errors, waiting requests, the weights asked for, readiness."""

import ast
import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eft_server.api import app as app_module
from eft_server.api.app import create_app
from eft_server.api.edge.metrics import waiting
from eft_server.api.edge.rooms import Room

from .fake_engine import FakeEngine
from .served import client_of, family

API = Path(app_module.__file__).parent

Series = dict[tuple[str, ...], float]
"""Values by the series' name and the values of its labels, in the alphabetical order of their names."""


async def scraped(client: httpx.AsyncClient) -> Series:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if sample.name.startswith("eft:") and not sample.name.endswith("_created")
    }


async def risen(client: httpx.AsyncClient, path: str, body: Any) -> tuple[httpx.Response, Series]:
    """The answer to a request, and what it added to the metrics."""
    before = await scraped(client)
    answer = await client.post(path, json=body)
    after = await scraped(client)
    return answer, {
        key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)
    }


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"eft": {"weights": {"helpful": 9}}}, "400", "invalid_behaviour"),
        ({"eft": {"weights": {"unheard-of": 1}}}, "400", "invalid_behaviour"),
        ({"model": "unheard-of"}, "404", "model_not_found"),
        ({"unheard-of": 1}, "400", "unknown_field"),
        ({"max_tokens": -1}, "400", "invalid_value"),
    ],
)
async def test_a_refusal_is_counted_by_its_status_and_code(
    client: httpx.AsyncClient, fields: dict[str, Any], status: str, code: str
) -> None:
    answer, more = await risen(client, "/v1/completions", {"prompt": "Hi", **fields})
    assert (str(answer.status_code), answer.json()["error"]["code"]) == (status, code)
    assert more == {("eft:request_errors_total", code, status): 1}


async def test_refusals_by_the_edge_are_counted(engine: FakeEngine) -> None:
    async with client_of(create_app(engine, family(), api_keys=["key"])) as client:
        client.headers["Authorization"] = "Bearer key"
        before = await scraped(client)
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await client.post("/v1/completions", content=b"x" * 30_000)).status_code == 413
        assert (await client.get("/nowhere")).status_code == 404
        after = await scraped(client)
    for code, status in [("invalid_api_key", "401"), ("request_too_large", "413"), ("not_found", "404")]:
        key = ("eft:request_errors_total", code, status)
        assert after[key] - before[key] == 1


async def test_a_stream_that_ends_with_an_error_is_counted(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 2
    answer, more = await risen(client, "/v1/completions", {"prompt": "Hi", "max_tokens": 4, "stream": True})
    assert answer.status_code == 200
    assert more[("eft:request_errors_total", "internal_error", "500")] == 1


async def test_the_weights_and_the_scale_of_a_generation_are_counted(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "max_tokens": 1, "eft": {"weights": {"helpful": 0.7}, "scale": 0.5}}
    answer, more = await risen(client, "/v1/completions", body)
    assert answer.status_code == 200
    weight, scale = "eft:requested_weight_bucket", "eft:requested_scale_bucket"
    assert ((weight, "helpful", "0.65") in more, (weight, "helpful", "0.75") in more) == (False, True)
    assert ((weight, "harmless", "-0.05") in more, (weight, "harmless", "0.05") in more) == (False, True)
    assert ((scale, "0.25") in more, (scale, "0.5") in more) == (False, True)
    assert more[("eft:requests_total", "demo")] == 1


async def test_a_generation_without_weights_adds_none(client: httpx.AsyncClient) -> None:
    _, more = await risen(client, "/v1/completions", {"model": "demo/base", "prompt": "Hi", "max_tokens": 1})
    assert more == {("eft:requests_total", "demo/base"): 1}


async def test_series_do_not_grow_with_what_clients_send(client: httpx.AsyncClient) -> None:
    async def send(number: int) -> None:
        text = f"text-{number}"
        bodies: list[dict[str, Any]] = [
            {"model": text},
            {"model": f"demo:{text}"},
            {"user": text, "max_tokens": 1},
            {"eft": {"weights": {text: 1}}},
            {"eft": {"weights": {"helpful": number / 100}}, "max_tokens": 1},
            {"stop": text, "max_tokens": 1, text: text},
        ]
        for body in bodies:
            await client.post("/v1/completions", json={"prompt": "Hi", **body})
        await client.get(f"/{text}")

    await send(0)
    before = await scraped(client)
    for number in range(1, 20):
        await send(number)
    assert set(await scraped(client)) == set(before)


def test_codes_of_errors_are_written_down_here() -> None:
    calls = [
        (path.name, keyword)
        for path in API.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("ApiError", "__init__")
        for keyword in node.keywords
        if keyword.arg == "code"
    ]
    assert len(calls) > 10
    passed_on = {"error.code"}
    others = [
        (name, ast.unparse(keyword.value))
        for name, keyword in calls
        if not isinstance(keyword.value, ast.Constant)
    ]
    assert {code for _, code in others} <= passed_on


async def test_waiting_requests_are_counted_until_they_have_room() -> None:
    gauge = waiting("requests")
    room, leave = Room([1], gauge=gauge), asyncio.Event()
    value = lambda: next(iter(gauge.collect())).samples[0].value  # noqa: E731

    async def request() -> None:
        async with room.take("", 1):
            await leave.wait()

    before = value()
    requests = [asyncio.create_task(request()) for _ in range(3)]
    await asyncio.sleep(0)
    assert value() - before == room.waiting == 2
    requests[2].cancel()
    await asyncio.wait(requests[2:])
    assert value() - before == room.waiting == 1
    leave.set()
    await asyncio.gather(*requests[:2])
    assert value() - before == room.waiting == 0


async def test_a_request_that_waits_for_a_place_is_seen(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    async with client_of(create_app(engine, family(max_concurrent_requests=1))) as client:
        body = {"prompt": "Hi", "max_tokens": 4}
        posts = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(3)]
        while not engine.running:
            await asyncio.sleep(0)
        assert (await scraped(client))["eft:waiting_requests", "requests"] == 2
        assert [answer.status_code for answer in await asyncio.gather(*posts)] == [200] * 3
        assert (await scraped(client))["eft:waiting_requests", "requests"] == 0


async def test_sequences_that_wait_for_the_engine_are_seen(engine: FakeEngine) -> None:
    engine.pause_s = 0.05
    async with client_of(create_app(engine, family(max_sequences=1))) as client:
        body = {"prompt": ["Hi"] * 3, "max_tokens": 4}
        post = asyncio.create_task(client.post("/v1/completions", json=body))
        while not engine.running:
            await asyncio.sleep(0)
        assert (await scraped(client))["eft:waiting_requests", "sequences"] == 2
        assert (await post).status_code == 200
        assert (await scraped(client))["eft:waiting_requests", "sequences"] == 0


async def test_ready_follows_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await scraped(client))["eft:ready",] == 1
    engine.dead = True
    before = await scraped(client)
    assert before["eft:ready",] == 0
    assert (await client.get("/health")).status_code == 503
    assert await scraped(client) == before, "a probe's answer is no request that was refused"
