"""Several requests as a batch: in order, no more at once than asked for, and none after the first error."""

import asyncio
import json

import httpx
import pytest

from eft_client import AsyncEftClient, BadRequest, ChatResult, EftClient, TextResult, WrongArgument

from .scripted import CHAT, Script, refusal


class Echo(httpx.AsyncBaseTransport):
    """Answers with what was asked, the later the sooner; `most` were asked at the same time."""

    def __init__(self) -> None:
        self.bodies = []
        self.running = self.most = self.given_up = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if body.get("seed") == 13:
                return refusal(400, "no luck")
            await asyncio.sleep(0.02 / len(self.bodies))
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.running -= 1
        if "prompt" in body:
            return httpx.Response(200, json={"choices": [{"index": 0, "text": str(body["prompt"])}]})
        message = {"role": "assistant", "content": body["messages"][-1]["content"]}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message}]})


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def asking(echo: Echo) -> AsyncEftClient:
    return AsyncEftClient(model="demo", transport=echo)


async def test_chats_are_answered_at_once_and_in_order(asking, echo) -> None:
    chats = ["a", [{"role": "user", "content": "b"}], "c"]
    answers = await asking.chat_many(chats, weights={"helpful": 1}, temperature=0)
    assert [answer.text for answer in answers] == ["a", "b", "c"]
    assert echo.most == 3
    assert {type(answer) for answer in answers} == {ChatResult}
    common = {"model": "demo", "temperature": 0, "eft": {"weights": {"helpful": 1}}}
    assert all(body | common == body for body in echo.bodies)


async def test_prompts_are_texts_or_token_ids(asking, echo) -> None:
    answers = await asking.complete_many(["a", [5, 6]], model="other", max_tokens=3)
    assert [answer.text for answer in answers] == ["a", "[5, 6]"]
    assert {body["model"] for body in echo.bodies} == {"other"}
    assert await asking.complete_many([]) == []


async def test_each_call_of_a_batch_may_have_weights_of_its_own(asking, echo) -> None:
    calls = [{"messages": "a", "weights": {"helpful": 1}}, {"prompt": "b", "eft": {"scale": 0.5}}]
    chat, text = await asking.answer_many(calls)
    assert (type(chat), type(text)) == (ChatResult, TextResult)
    assert (chat.text, text.text) == ("a", "b")
    assert [body["eft"] for body in echo.bodies] == [{"weights": {"helpful": 1}}, {"scale": 0.5}]


@pytest.mark.parametrize(("options", "at_once", "most"), [({}, 3, 3), ({"max_connections": 2}, None, 2)])
async def test_no_more_are_asked_at_once_than_is_said(echo, options, at_once, most) -> None:
    asking = AsyncEftClient(model="demo", transport=echo, **options)
    answers = await asking.complete_many([str(number) for number in range(12)], at_once=at_once)
    assert [answer.text for answer in answers] == [str(number) for number in range(12)]
    assert echo.most == most


async def test_the_first_error_ends_the_batch(asking, echo) -> None:
    calls = [{"prompt": "a"}, {"prompt": "b", "seed": 13}, *[{"prompt": "c"}] * 20]
    with pytest.raises(BadRequest, match="no luck"):
        await asking.answer_many(calls, at_once=2)
    assert echo.given_up == 1
    assert len(echo.bodies) == 2


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("chat_many", "Hello", "chats must be a list"),
        ("complete_many", (text for text in "ab"), "prompts must be a list"),
        ("complete_many", {"prompt": "a"}, "prompts must be a list"),
        ("answer_many", {"prompt": "a"}, "calls must be a list"),
        ("answer_many", [{"prompt": "a"}, {}], r"calls\[1\] must be an object with either"),
        ("answer_many", [{"prompt": "a", "messages": "a"}], r"calls\[0\]"),
        ("answer_many", ["a"], r"calls\[0\]"),
    ],
)
async def test_what_is_no_batch_is_refused_before_anything_is_sent(
    asking, echo, method, given, words
) -> None:
    with pytest.raises(WrongArgument, match=words):
        await getattr(asking, method)(given)
    with pytest.raises(WrongArgument, match="at_once must be 1 or more, not 0"):
        await asking.chat_many(["a"], at_once=0)
    assert echo.bodies == []


async def test_weights_and_a_whole_eft_are_not_both_taken(asking, echo) -> None:
    for ask in (asking.chat, asking.complete, asking.stream):
        with pytest.raises(WrongArgument, match="not both"):
            await ask("a", weights={"helpful": 1}, eft={"scale": 1})
    assert (await asking.chat("a", eft={"scale": 1})).text == "a"
    assert echo.bodies[0]["eft"] == {"scale": 1}


def test_a_batch_needs_no_loop_of_the_callers() -> None:
    with EftClient(model="demo", transport=Echo()) as asking:
        assert [answer.text for answer in asking.chat_many(["a", "b"])] == ["a", "b"]
    with (
        EftClient(model="demo", transport=Script(httpx.Response(200, json=CHAT))) as asking,
        pytest.raises(WrongArgument),
    ):
        asking.complete_many("a")
