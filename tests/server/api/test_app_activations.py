"""Activations of POST /v1/eft/score over the fake engine: what is asked, what comes back, and what is refused."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from eft_client.probe.collection import TOO_LARGE
from eft_server.api.app import create_app

from .fake_engine import FakeEngine
from .served import client_of, family

pytestmark = pytest.mark.asyncio

PATH = "/v1/eft/score"
ITEM = {"prompt": [1, 2, 3], "completion": [5, 6]}


@pytest.fixture
async def opened(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that returns activations."""
    async with client_of(create_app(engine, family(activations=True))) as client:
        yield client


async def ask(client: httpx.AsyncClient, *items: Any, **activations: Any) -> httpx.Response:
    body = {"items": list(items or [ITEM]), "members": False, "activations": {"layers": "all"} | activations}
    return await client.post(PATH, json=body)


def array(layer: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(layer["data"]), dtype="<f4").reshape(layer["shape"])


async def test_every_state_is_its_own_members_and_layers(
    opened: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await ask(opened, members=["base", "small"], layers=[0, -1], pool="none", site="mlp")
    assert answer.status_code == 200
    [params] = engine.asked
    asked = params.extra_args["eft_scoring"]
    assert asked["activations"] == {
        "members": (0, 1),
        "layers": ((0, 2), (0, 1)),
        "site": "mlp",
        "pool": "none",
    }
    found = answer.json()["data"][0]["activations"]
    assert {name: list(own) for name, own in found.items()} == {"base": ["0", "2"], "small": ["0", "1"]}
    assert np.array_equal(array(found["base"]["2"]), np.arange(12, 24).reshape(2, 6))
    assert np.array_equal(array(found["small"]["0"]), np.arange(24, 32).reshape(2, 4))


async def test_pooled_states_have_one_row_without_a_dimension(opened: httpx.AsyncClient) -> None:
    found = (await ask(opened)).json()["data"][0]["activations"]
    assert list(found) == ["base", "small", "helpful", "harmless"]
    assert [layer["shape"] for layer in found["base"].values()] == [[6]] * 3
    assert array(found["small"]["1"]).tolist() == [22, 23, 24, 25]


async def test_the_engine_reads_the_last_token_and_scores_the_same_rows(
    opened: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await ask(opened, layers=[0])
    await opened.post(PATH, json={"items": [ITEM], "members": False})
    with_states, plain = engine.asked
    decode = engine.renderer.get_tokenizer().decode
    assert engine.prompts == [decode([1, 2, 3, 5, 6]), decode([1, 2, 3, 5])]
    asked = with_states.extra_args["eft_scoring"]
    assert {key: asked[key] for key in ("first", "targets")} == {"first": 2, "targets": [5, 6]}
    assert "activations" not in plain.extra_args["eft_scoring"]


async def test_prompts_of_members_own_end_with_the_last_token_too(
    opened: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A member that counts in no column reads its prompt for its states."""
    item = {"prompt": [1, 2], "prompts": {"harmless": [3, 4, 5]}, "completion": [6, 7]}
    body = {"items": [item], "members": False, "eft": {"weights": {"helpful": 1}}}
    assert (await opened.post(PATH, json=body)).status_code == 400
    states = {"activations": {"members": ["harmless"], "layers": [0]}}
    assert (await opened.post(PATH, json=body | states)).status_code == 200
    assert engine.asked[0].extra_args["eft_prompts"][2:] == [[1, 2, 6, 7], [3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("activations", "param", "words"),
    [
        ([], "activations", "not an object"),
        ({}, "activations", "layers has to be there"),
        ({"members": ["nobody"]}, "activations.members.0", "unknown member"),
        ({"members": []}, "activations.members", "at least one"),
        ({"members": False}, "activations.members", "at least one"),
        ({"members": [1]}, "activations.members.0", "not a string"),
        (
            {"layers": [0, 2]},
            "activations.layers.1",
            "member 'small' has no layer 2; allowed: 0 to 1, or -2 to -1",
        ),
        ({"layers": [-3], "members": ["base", "small"]}, "activations.layers.0", "no layer -3"),
        ({"layers": []}, "activations.layers", "at least one"),
        ({"layers": [True]}, "activations.layers.0", "not a whole number"),
        ({"layers": "some"}, "activations.layers", '"all"'),
        ({"site": "attention"}, "activations.site", "known: residual, mlp"),
        ({"pool": "max"}, "activations.pool", "known: last, mean, none"),
        ({"heads": 1}, "activations.heads", "known: members, layers, site, pool"),
    ],
)
async def test_what_no_member_has_is_refused_by_name_and_nothing_runs(
    opened: httpx.AsyncClient, engine: FakeEngine, activations: Any, param: str, words: str
) -> None:
    if activations and "layers" not in activations:
        activations = activations | {"layers": [0]}
    response = await opened.post(PATH, json={"items": [ITEM], "activations": activations})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ") and words in error["message"]
    assert engine.asked == []


async def test_the_operator_has_to_allow_them(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await ask(client)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "activations" and "server.activations: true" in error["message"]
    assert engine.asked == []


async def test_more_bytes_than_allowed_are_refused_with_the_numbers(engine: FakeEngine) -> None:
    app = create_app(engine, family(activations=True, max_activation_bytes=2 * 2 * 6 * 4))
    async with client_of(app) as client:
        assert (await ask(client, ITEM, members=["base"], layers=[0, 1], pool="none")).status_code == 200
        response = await ask(client, ITEM, members=["base"], layers=[0, 1, 2], pool="none")
        assert (await ask(client, *[ITEM] * 4, members=["base"], layers=[0])).status_code == 200
        pooled = await ask(client, *[ITEM] * 5, members=["base"], layers=[0])
    assert response.status_code == pooled.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(
        "activations: 144 bytes of states (items: 1, their rows: 2, members: 1, their layers: 3) are too many; "
        "allowed: up to 96;"
    )
    assert TOO_LARGE in message and TOO_LARGE in pooled.json()["error"]["message"]
    assert "pool them" in message and "pool them" not in pooled.json()["error"]["message"]
    assert "120 bytes of states (items: 5, their rows: 5," in pooled.json()["error"]["message"]
    assert len(engine.asked) == 5


async def test_requests_have_so_many_bytes_together_and_others_wait(engine: FakeEngine) -> None:
    engine.pause_s = 0.02
    app = create_app(engine, family(activations=True, max_activation_bytes=6 * 4 * 2))
    async with client_of(app) as client:
        asked = [ask(client, ITEM, members=["base"], layers=[0]) for _ in range(6)]
        statuses = [response.status_code for response in await asyncio.gather(*asked)]
    assert statuses == [200] * 6
    assert engine.most_running == 2


async def test_the_last_token_and_the_one_behind_it_need_room(opened: httpx.AsyncClient) -> None:
    fits = {"prompt": [1] * 500, "completion": [2] * 11}
    assert (await ask(opened, fits)).status_code == 200
    response = await ask(opened, fits | {"completion": [2] * 12})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "items.0.completion"
    assert "allowed: 511 together, with activations" in response.json()["error"]["message"]


async def test_what_only_the_model_knows_is_an_error_of_the_request(
    opened: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.problem = "vLLM's FooForCausalLM has no feed-forward module that has a known name"
    response = await ask(opened)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "activations"
    assert "FooForCausalLM" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_states_that_are_not_finite_fail_the_request(
    opened: httpx.AsyncClient, engine: FakeEngine, value: float
) -> None:
    engine.last_state = value
    response = await ask(opened)
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]


async def test_without_them_the_answer_says_nothing_of_them(opened: httpx.AsyncClient) -> None:
    answer = (await opened.post(PATH, json={"items": [ITEM]})).json()
    assert "activations" not in answer["data"][0]
