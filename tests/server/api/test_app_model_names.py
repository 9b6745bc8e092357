"""Weights in the model's name, wherever a model is named."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from openai import AsyncOpenAI

from .fake_engine import FakeEngine
from .served import FAMILY

pytestmark = pytest.mark.asyncio

HELLO = [{"role": "user", "content": "Hi"}]
ITEM = {"prompt": [1, 2, 3], "completion": [5, 6]}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/eft/score": {"items": [ITEM]},
}
OTHERS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
}
NAME = "demo:harmless=0.250,helpful=7.5e-1,filter=base:0.9,scale=0.5"
CANONICAL = "demo:helpful=0.75,harmless=0.25,scale=0.5,filter=base:0.9"
EFT = {
    "model": CANONICAL,
    "weights": {"helpful": 0.75, "harmless": 0.25},
    "scale": 0.5,
    "amplify": 1.0,
    "filter": {"kind": "base", "top_p": 0.9},
}


@pytest.mark.parametrize("path", ASKED)
async def test_a_name_is_answered_as_the_field_and_under_its_canonical_form(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    named = await client.post(path, json=ASKED[path] | {"model": NAME})
    field = await client.post(
        path, json=ASKED[path] | {"eft": {key: EFT[key] for key in EFT if key != "model"}}
    )
    assert named.status_code == field.status_code == 200
    assert engine.asked[0].extra_args == engine.asked[1].extra_args
    assert (named.json()["model"], named.json()["eft"]) == (CANONICAL, EFT)
    assert (field.json()["model"], field.json()["eft"]) == ("demo", EFT | {"model": "demo"})
    again = await client.post(path, json=ASKED[path] | {"model": CANONICAL})
    assert (again.json()["model"], again.json()["eft"]) == (CANONICAL, EFT)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_every_event_of_a_stream_has_the_canonical_name(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=ASKED[path] | {"model": NAME, "stream": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    said = [event.get("response", event) for event in events]
    assert {each["model"] for each in said if "model" in each} == {CANONICAL}
    assert said[0]["eft"] == EFT


@pytest.mark.parametrize("path", ASKED | OTHERS)
@pytest.mark.parametrize(
    ("model", "status", "param", "message"),
    [
        ("demo:rude=1", 400, "model.rude", "model.rude: unknown expert 'rude'; known: helpful, harmless"),
        ("demo:helpful=3", 400, "model.helpful", "model.helpful: 3.0 is out of bounds; allowed: 0 to 2"),
        ("demo:helpful=nan", 400, "model", "model: 'helpful' must be a number such as 0.5, not 'nan'"),
        ("demo:", 400, "model", "model: '' is not of the form expert=number"),
        ("demo/base:helpful=1", 400, "model", "is a single member and takes no weights; use 'demo'"),
        ("large:helpful=1", 404, "model", "'large' is not served; known: demo, demo-helpful"),
        ("demo:" + "1" * 5000, 400, "model", "is not a string of 1 to 4096 characters"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_refusals_are_openais_and_say_what_is_wrong_in_the_name(
    client: httpx.AsyncClient, path: str, model: str, status: int, param: str, message: str
) -> None:
    answer = await client.post(path, json=(ASKED | OTHERS)[path] | {"model": model})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("path", OTHERS)
async def test_tokens_are_the_same_under_every_name(client: httpx.AsyncClient, path: str) -> None:
    named = await client.post(path, json=OTHERS[path] | {"model": NAME})
    assert named.status_code == 200
    assert named.json() == (await client.post(path, json=OTHERS[path])).json()


@pytest.mark.parametrize("path", ASKED)
async def test_weights_come_in_one_form(client: httpx.AsyncClient, path: str) -> None:
    for field, given in (("eft", {"scale": 1}), ("vllm_xargs", {"eft.scale": 1})):
        answer = await client.post(path, json=ASKED[path] | {"model": NAME, field: given})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
        assert "or in the model's name, not in both" in answer.json()["error"]["message"]


async def test_prompts_by_member_may_stand_beside_weights_in_the_name(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "demo:helpful=1", "prompt": "Hi", "eft": {"prompts": {"helpful": "Hello"}}}
    answer = await client.post("/v1/completions", json=body)
    assert answer.json()["model"] == "demo:helpful=1"


async def test_an_alias_gives_what_the_name_leaves_out(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (
        await client.post("/v1/completions", json={"model": "demo-helpful:scale=0.50", "prompt": "Hi"})
    ).json()
    assert answer["model"] == "demo-helpful:scale=0.5"
    assert engine.asked[0].extra_args == {"eft": [1.0, -0.5, 0.5, 0.0]}


async def test_the_list_has_served_names_only_and_a_card_any_that_is_accepted(
    client: httpx.AsyncClient,
) -> None:
    listed = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
    assert not any(":" in name for name in listed)
    for encoded in (NAME, quote(NAME), quote(NAME, safe="")):
        card = (await client.get(f"/v1/models/{encoded}")).json()
        assert card == listed["demo"] | {
            "id": CANONICAL,
            "eft": listed["demo"]["eft"] | {key: EFT[key] for key in EFT if key != "model"},
        }
    assert (await client.get("/v1/models/demo-helpful:helpful=1.0")).json() == listed["demo-helpful"]
    assert (await client.get("/v1/models/demo%2Fbase")).json() == listed["demo/base"]


@pytest.mark.parametrize(
    ("name", "status", "param"),
    [
        ("demo:rude=1", 400, "model.rude"),
        ("demo/base:helpful=1", 400, "model"),
        ("rude:helpful=1", 404, "model"),
        ("demo:" + "x" * 5000, 400, "model"),
        ("demo:helpful=%31", 200, None),
        ("demo:%ff=1", 400, None),
    ],
)
async def test_a_card_is_refused_as_a_request_is(
    client: httpx.AsyncClient, name: str, status: int, param: str | None
) -> None:
    answer = await client.get(f"/v1/models/{name}")
    assert answer.status_code == status
    if param is not None:
        assert answer.json()["error"]["param"] == param


async def test_openais_client_finds_and_asks_what_a_name_says(client: httpx.AsyncClient) -> None:
    openai = AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=client, max_retries=0)
    card = await openai.models.retrieve(NAME)
    assert card.id == CANONICAL
    answer = await openai.completions.create(model=card.id, prompt="Hi")
    assert answer.model == CANONICAL


async def test_metrics_and_the_log_have_no_more_names_than_are_served(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "eft_server"):
        for share in (0.1, 0.2, 0.3):
            model = f"demo-helpful:helpful={share}"
            await client.post("/v1/completions", json={"model": model, "prompt": "Hi"})
    text = (await client.get("/metrics")).text
    names = {line.split('"')[1] for line in text.splitlines() if line.startswith("eft:requests_total{")}
    served = {
        "demo",
        *FAMILY["aliases"],
        *(f"demo/{member}" for member in ("base", "small", "helpful", "harmless")),
    }
    assert "demo-helpful" in names
    assert names <= served
    lines = [record.getMessage() for record in caplog.records if "model=" in record.getMessage()]
    assert len(lines) == 3
    assert all(" model=demo-helpful eft={" in line for line in lines)
