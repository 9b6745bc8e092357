"""Every answer says which request it answers, whatever became of it."""

import logging

import httpx
import pytest

from eft_server.api.app import create_app

from .fake_engine import FakeEngine
from .served import client_of, family

pytestmark = pytest.mark.asyncio

ASKED = {"prompt": "a", "max_tokens": 2}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", ASKED, 200),
        ("POST", "/v1/completions", {**ASKED, "stream": True}, 200),
        ("POST", "/v1/completions", {"prompt": 5}, 400),
        ("POST", "/v1/chat/completions", {"messages": []}, 400),
        ("POST", "/v1/eft/score", {"items": [{"prompt": "a", "completion": "b"}]}, 200),
        ("GET", "/nowhere", None, 404),
        ("GET", "/health", None, 200),
    ],
)
async def test_every_answer_bears_an_id(
    client: httpx.AsyncClient, method: str, path: str, body: object, status: int
) -> None:
    answers = [await client.request(method, path, json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    first, second = (answer.headers["x-request-id"] for answer in answers)
    assert first.startswith("req_") and first != second


async def test_an_answer_to_what_went_wrong_here_bears_it_too(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.raises = RuntimeError("secret")
    answer = await client.post("/v1/completions", json=ASKED)
    assert answer.status_code == 500 and answer.headers["x-request-id"].startswith("req_")


async def test_who_has_no_key_is_told_it_too(engine: FakeEngine) -> None:
    async with client_of(create_app(engine, family(), api_keys=["one"])) as client:
        answer = await client.post("/v1/completions", json=ASKED)
    assert answer.status_code == 401 and answer.headers["x-request-id"].startswith("req_")


async def test_a_clients_own_id_is_kept_and_logged(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="eft_server"):
        answer = await client.post("/v1/completions", json=ASKED, headers={"x-request-id": "trace-1.a:b_c"})
    assert answer.headers["x-request-id"] == "trace-1.a:b_c"
    assert any(message.startswith("trace-1.a:b_c ") for message in caplog.messages)


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "ä", 'a"b', "a/b"])
async def test_an_id_that_a_log_could_be_misread_by_is_not_kept(
    client: httpx.AsyncClient, given: str
) -> None:
    answer = await client.post("/v1/completions", json=ASKED, headers={"x-request-id": given.encode()})
    assert answer.status_code == 200 and answer.headers["x-request-id"].startswith("req_")
