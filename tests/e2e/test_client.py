"""The client library against the running server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import OpenAI

from eft_client import (
    AsyncEftClient,
    BadRequest,
    ConnectionFailed,
    EftClient,
    NotFound,
    ScoreItem,
    ServerFailed,
    eft_body,
)

from .conftest import Server
from .random_family import POISON

HELLO = "Hello world, how does the fox jump?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
HELPFUL = {"helpful": 0.75}


@pytest.fixture
def asking(server: Server) -> Iterator[EftClient]:
    with EftClient(f"{server.url}/v1", model="tiny", retries=0) as client:
        yield client


def test_a_chat_says_what_was_applied_and_its_stream_says_the_same(asking: EftClient) -> None:
    whole = asking.chat(HELLO, weights=HELPFUL, **GREEDY)
    pieces = list(asking.stream(HELLO, weights=HELPFUL, **GREEDY, stream_options={"include_usage": True}))
    assert "".join(piece.text for piece in pieces) == whole.text != ""
    assert whole.eft is not None
    assert whole.eft["weights"] == {"helpful": 0.75, "harmless": 0.0, "broken": 0.0}
    assert pieces[0].eft == whole.eft
    assert [piece.eft for piece in pieces[1:]] == [None] * (len(pieces) - 1)
    assert pieces[-1].usage == whole.usage
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]


def test_the_openai_client_with_the_same_body_says_the_same(asking: EftClient, client: OpenAI) -> None:
    behaviour: dict[str, Any] = {"weights": HELPFUL, "scale": 0.5, "filter": {"kind": "base", "top_p": 0.9}}
    theirs = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": HELLO}],
        **GREEDY,
        extra_body=eft_body(**behaviour),
    )
    assert asking.chat(HELLO, **behaviour, **GREEDY).text == theirs.choices[0].message.content


def test_weights_change_what_is_said_and_no_weights_are_the_models_own(asking: EftClient) -> None:
    texts = {asking.complete("Hello", weights={name: 1}, **GREEDY).text for name in ("helpful", "harmless")}
    assert len(texts) == 2
    own = asking.complete("Hello", **GREEDY)
    assert own.eft and own.eft["weights"] == {"helpful": 0.5, "harmless": 0.5, "broken": 0.0}


def test_several_choices_come_back_in_order_with_logprobs(asking: EftClient) -> None:
    answer = asking.chat(HELLO, n=3, seed=7, max_tokens=4, logprobs=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.logprobs and len(choice.logprobs["content"]) == 4 for choice in answer.choices)


def test_what_was_generated_greedily_scores_as_the_likeliest(asking: EftClient) -> None:
    prompt, generated = "Hello", asking.complete("Hello", weights=HELPFUL, return_token_ids=True, **GREEDY)
    ids = generated.raw["choices"][0]["token_ids"]
    items = [
        ScoreItem(prompt=prompt, completion=ids),
        {"messages": [{"role": "user", "content": HELLO}], "completion": "No."},
    ]
    first, second = asking.score(items, weights=HELPFUL)
    assert first.token_ids == tuple(ids)
    assert set(first.composite.ranks) == {1}
    assert first.composite.logprobs == pytest.approx(first.composite.top_logprobs)
    assert first.composite.total == pytest.approx(sum(first.composite.logprobs))
    assert list(second.members) == ["base", "small", "helpful", "harmless", "broken"]
    gain = second.members["helpful"].total - second.members["small"].total
    assert second.rewards["helpful"].total == pytest.approx(gain)
    (alone,) = asking.score(items[:1], members=False, weights=HELPFUL)
    assert (alone.members, alone.rewards) == ({}, {})
    with pytest.raises(BadRequest, match="nobody"):
        asking.score(items, members=["nobody"])


def test_an_explanation_says_who_pushed_which_token(asking: EftClient) -> None:
    given = asking.explain(prompt="Hello", completion=" né!", weights={"helpful": 1}, top_logprobs=2)
    assert given.text == " né!" and given.finish_reason is None
    assert b"".join(token.bytes for token in given.tokens).decode() == " né!"
    for token in given.tokens:
        assert token.contributions.total == pytest.approx(token.logprob + token.constant, abs=1e-4)
        assert [item.contributions.total - item.logprob for item in token.top] == pytest.approx(
            [token.constant] * 2, abs=1e-4
        )
        assert set(token.members) == {"base", "small", "helpful", "harmless", "broken"}
        assert token.without["helpful"].id == token.members["base"].top.id
        assert token.without["helpful"].token_logprob == pytest.approx(
            token.members["base"].logprob, abs=1e-3
        )
    assert "helpful" in repr(given) and given.summary["tokens"] == len(given.tokens)
    generated = asking.explain(HELLO, weights=HELPFUL, **GREEDY)
    assert generated.text == asking.chat(HELLO, weights=HELPFUL, **GREEDY).text
    assert {token.sampled_logprob for token in generated.tokens} == {0.0}
    with pytest.raises(BadRequest, match="span"):
        asking.explain(HELLO, completion="No.", span=[0, 99])


def test_models_and_behaviours_say_what_can_be_asked_for(asking: EftClient) -> None:
    assert [card.id for card in asking.models()][:2] == ["tiny", "tiny-helpful"]
    behaviours = asking.behaviours()
    assert behaviours.model == "tiny"
    assert {expert.name: expert.weight for expert in behaviours} == {
        "helpful": 0.5,
        "harmless": 0.5,
        "broken": 0.0,
    }
    assert (behaviours["helpful"].min, behaviours["helpful"].max, behaviours.total) == (0.0, 2.0, 2.0)
    assert [card.id for card in behaviours.aliases] == ["tiny-helpful"]
    assert "tiny/base" in [card.id for card in behaviours.members]


def test_a_refusal_names_the_value_the_bounds_and_the_field(asking: EftClient) -> None:
    with pytest.raises(BadRequest, match="7") as refused:
        asking.chat(HELLO, weights={"helpful": 7})
    assert "0 to 2" in refused.value.message
    assert refused.value.param == "eft.weights.helpful"
    with pytest.raises(BadRequest, match="helpfull"):
        list(asking.stream(HELLO, weights={"helpfull": 1}))
    with pytest.raises(BadRequest, match="no_such_field"):
        asking.chat(HELLO, no_such_field=1)


def test_a_model_that_is_not_served_is_not_found(asking: EftClient) -> None:
    with pytest.raises(NotFound, match="known: tiny") as refused:
        asking.chat(HELLO, model="large")
    assert refused.value.code == "model_not_found"


def test_a_row_that_is_not_finite_is_an_error_of_the_server(asking: EftClient) -> None:
    with pytest.raises(ServerFailed):
        asking.complete([POISON], weights={"broken": 1}, **GREEDY)


async def test_without_a_model_the_family_itself_answers(server: Server) -> None:
    async with AsyncEftClient(server.url) as asking:
        assert (await asking.chat(HELLO, **GREEDY)).model == "tiny"


async def test_many_at_once_answer_as_each_would_alone(server: Server) -> None:
    async with AsyncEftClient(server.url, model="tiny") as asking:
        weights = [{"helpful": step / 4, "harmless": 1 - step / 4} for step in range(5)]
        together = await asyncio.gather(*(asking.complete("Hello", weights=w, **GREEDY) for w in weights))
        for chosen, answer in zip(weights, together, strict=True):
            assert (await asking.complete("Hello", weights=chosen, **GREEDY)).text == answer.text


async def metric(server: Server, name: str) -> float:
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{server.url}/metrics")).text
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"vllm:{name}{{")]
    assert values
    return sum(map(float, values))


@asynccontextmanager
async def left_early(server: Server) -> AsyncIterator[None]:
    """Expect the engine to be free after the block before the endless text is done."""
    before = await metric(server, "generation_tokens_total")
    yield
    async with asyncio.timeout(60):
        while await metric(server, "num_requests_running"):
            await asyncio.sleep(0.02)
    assert await metric(server, "generation_tokens_total") - before < ENDLESS["max_tokens"]


ENDLESS: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}


async def test_closing_a_stream_frees_the_engine(server: Server) -> None:
    async with (
        AsyncEftClient(server.url, model="tiny") as asking,
        left_early(server),
        aclosing(asking.stream(HELLO, **ENDLESS)) as pieces,
    ):
        await anext(pieces)


async def test_leaving_a_loop_of_the_synchronous_client_frees_the_engine(server: Server) -> None:
    async with left_early(server):
        with EftClient(server.url, model="tiny") as asking:
            for _ in asking.stream(HELLO, **ENDLESS):
                break


async def test_cancelling_a_chat_frees_the_engine(server: Server) -> None:
    async with AsyncEftClient(server.url, model="tiny") as asking, left_early(server):
        task = asyncio.ensure_future(asking.chat(HELLO, **ENDLESS))
        async with asyncio.timeout(30):
            while not await metric(server, "num_requests_running"):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_server_that_is_not_there_is_named() -> None:
    async with AsyncEftClient("http://127.0.0.1:9", retries=0) as asking:
        with pytest.raises(ConnectionFailed, match=r"http://127\.0\.0\.1:9/v1"):
            await asking.models()
