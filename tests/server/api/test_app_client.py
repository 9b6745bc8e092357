"""The application and this project's own client of it: answers, scores and refusals that cross the wire whole."""

import asyncio
import math

import httpx
import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from eft_client import (
    AsyncEftClient,
    BadRequest,
    Busy,
    NotFound,
    ScoreItem,
    ServerFailed,
    TooLarge,
    Unauthorised,
)
from eft_server.api.app import create_app

from .fake_engine import TEXT, FakeEngine
from .served import family


def asking(
    engine: FakeEngine, *keys: str, api_key: str | None = None, retries: int = 0, **server
) -> AsyncEftClient:
    app = create_app(engine, family(**server), api_keys=keys)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return AsyncEftClient("http://server/v1", api_key, transport=transport, retries=retries)


async def test_answers_say_what_was_applied(engine: FakeEngine) -> None:
    client = asking(engine)
    answer = await client.chat(
        "Hi", weights={"helpful": 0.75}, filter={"kind": "base", "top_p": 0.9}, max_tokens=4
    )
    assert answer.text == TEXT
    assert answer.eft == {
        "model": "demo",
        "weights": {"helpful": 0.75, "harmless": 0.0},
        "scale": 1.0,
        "amplify": 1.0,
        "filter": {"kind": "base", "top_p": 0.9},
    }
    pieces = [piece async for piece in client.stream("Hi", weights={"helpful": 0.75}, max_tokens=4)]
    assert "".join(piece.text for piece in pieces) == TEXT
    assert pieces[0].eft and pieces[0].eft["weights"]["helpful"] == 0.75
    assert (await client.complete([5, 6], max_tokens=4)).text == TEXT


async def test_a_model_may_have_weights_in_its_name(engine: FakeEngine) -> None:
    answer = await asking(engine).chat("Hi", model="demo:harmless=0.250,helpful=0.75", max_tokens=4)
    assert answer.model == "demo:helpful=0.75,harmless=0.25"
    with pytest.raises(BadRequest, match="either in eft or in the model's name"):
        await asking(engine).chat("Hi", model="demo:helpful=1", weights={"helpful": 0.5})


async def test_what_the_server_lists_is_what_it_takes(engine: FakeEngine) -> None:
    client = asking(engine)
    behaviours = await client.behaviours()
    highest = {expert.name: min(expert.max, behaviours.total / len(behaviours)) for expert in behaviours}
    await client.chat("Hi", weights=highest)
    for expert in behaviours:
        with pytest.raises(BadRequest, match=f"{expert.min:g} to {expert.max:g}"):
            await client.chat("Hi", weights={expert.name: expert.max + 0.001})
    for card in (*behaviours.aliases, *behaviours.members):
        assert (await client.chat("Hi", model=card.id)).model == card.id


async def test_scores_are_read_with_what_is_impossible(engine: FakeEngine) -> None:
    client = asking(engine)
    messages = [{"role": "user", "content": "Hi"}]
    items = [
        ScoreItem(prompt="Hello", completion=" world"),
        ScoreItem(messages=messages, completion="No", end=True),
    ]
    first, second = await client.score(items, weights={"helpful": 1})
    assert "".join(first.tokens) == " world"
    assert list(first.members) == ["base", "small", "helpful", "harmless"]
    assert first.composite.total == pytest.approx(math.fsum(first.composite.logprobs))
    gain = first.members["helpful"].total - first.members["small"].total
    assert first.rewards["helpful"].total == pytest.approx(gain)
    assert len(second.token_ids) == len(second.composite.ranks)


@pytest.mark.parametrize(
    ("arguments", "kind", "param"),
    [
        ({"weights": {"helpful": 7}}, BadRequest, "eft.weights.helpful"),
        ({"temprature": 1}, BadRequest, "temprature"),
        ({"model": "large"}, NotFound, "model"),
        ({"user": "x" * 30_000}, TooLarge, None),
    ],
)
async def test_refusals_are_the_errors_that_they_stand_for(
    engine: FakeEngine, arguments, kind, param
) -> None:
    with pytest.raises(kind) as refused:
        await asking(engine).chat("Hi", **arguments)
    assert refused.value.param == param
    assert refused.value.code
    assert engine.asked == []


async def test_a_key_that_is_missing_or_wrong_is_an_error_of_its_own(engine: FakeEngine, monkeypatch) -> None:
    monkeypatch.delenv("EFT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for key in (None, "wrong"):
        with pytest.raises(Unauthorised):
            await asking(engine, "right", api_key=key).models()
    assert await asking(engine, "right", api_key="right").models()


async def test_a_full_server_says_when_to_come_back(engine: FakeEngine) -> None:
    engine.pause_s = 0.01
    full = asking(engine, max_concurrent_requests=1, max_waiting_requests=0)
    chats = (full.chat("Hi", model="demo", max_tokens=4) for _ in range(2))
    answers = await asyncio.gather(*chats, return_exceptions=True)
    (refused,) = [answer for answer in answers if isinstance(answer, Busy)]
    assert refused.retry_after_s == 1.0


async def test_an_engine_that_fails_is_the_servers_failure(engine: FakeEngine) -> None:
    engine.fail_at = 1
    client = asking(engine)
    with pytest.raises(ServerFailed):
        await client.chat("Hi")
    with pytest.raises(ServerFailed):
        _ = [piece async for piece in client.stream("Hi")]
    engine.raises = EngineDeadError()
    with pytest.raises(Busy):
        await client.chat("Hi")
