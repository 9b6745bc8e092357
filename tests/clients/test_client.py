"""The asynchronous client, over a scripted transport."""

import asyncio
import base64
import inspect
import json
import math
import struct
from array import array
from contextlib import aclosing

import httpx
import pytest

import eft_client
from eft_client import (
    Activations,
    AsyncEftClient,
    BadAnswer,
    BadRequest,
    Busy,
    ConnectionFailed,
    NotFound,
    ScoreItem,
    ServerAnswered,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unauthorised,
    WrongArgument,
    connection,
    eft_body,
)

from .scripted import CHAT, MODELS, Chunks, Script, chunk, event, refusal, streamed, streaming

DONE = event("[DONE]")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited before it asked again."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(connection, "sleep", sleep)
    for name in connection.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return waited


def client(*answers, **options) -> tuple[AsyncEftClient, Script]:
    script = Script(*answers)
    return AsyncEftClient("http://server/v1", transport=script, **{"model": "demo"} | options), script


async def collected(pieces) -> list:
    return [piece async for piece in pieces]


def ok(body) -> httpx.Response:
    return httpx.Response(200, json=body)


# What is sent


async def test_text_is_one_message_and_options_go_along() -> None:
    asking, script = client(ok(CHAT))
    await asking.chat("Hi", temperature=0.5, max_tokens=8)
    assert str(script.requests[0].url) == "http://server/v1/chat/completions"
    assert script.bodies == [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "max_tokens": 8,
        }
    ]


async def test_weights_become_the_field_eft_and_nothing_else_is_sent() -> None:
    asking, script = client(ok(CHAT))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    await asking.chat(messages, weights={"helpful": 1}, scale=0.5, amplify=1.5, filter=None)
    assert script.bodies == [
        {
            "model": "demo",
            "messages": messages,
            "eft": {"weights": {"helpful": 1}, "scale": 0.5, "amplify": 1.5, "filter": None},
        }
    ]


def test_the_openai_client_gets_the_same_body() -> None:
    assert eft_body() == {}
    assert eft_body(weights={}) == {"eft": {"weights": {}}}
    assert eft_body(report=True) == {"eft": {"report": True}}
    assert eft_body(coefficients={"base": 1, "helpful": 0.5}, filter={"kind": "base", "top_p": 0.9}) == {
        "eft": {"coefficients": {"base": 1, "helpful": 0.5}, "filter": {"kind": "base", "top_p": 0.9}}
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weights": {"helpful": math.nan}}, "weights.helpful must be a finite number, not nan"),
        ({"weights": {"helpful": "1"}}, "weights.helpful must be a number, not '1'"),
        ({"weights": {"helpful": True}}, "weights.helpful"),
        ({"weights": 0.7}, "weights must be numbers by name"),
        ({"scale": math.inf}, "scale"),
        ({"amplify": -math.inf}, "amplify"),
        ({"filter": {"kind": "base", "top_p": math.nan}}, "filter.top_p"),
        ({"filter": "base"}, "filter must be"),
        ({"report": 1}, "report must be True or False"),
        ({"coefficients": {"base": math.nan}}, "coefficients.base"),
        ({"temperature": math.nan}, "cannot be written as JSON"),
        ({"stop": {1, 2}}, "cannot be written as JSON"),
        ({"user": "\ud800"}, "cannot be written as JSON"),
    ],
)
async def test_what_no_server_would_take_is_refused_before_it_is_sent(arguments, named) -> None:
    asking, script = client(ok(CHAT))
    with pytest.raises(WrongArgument, match=named):
        await asking.chat("Hi", **arguments)
    with pytest.raises(WrongArgument, match=named):
        await collected(asking.stream("Hi", **arguments))
    assert script.requests == []


def test_a_stream_refuses_wrong_weights_before_it_is_iterated() -> None:
    asking, _ = client(ok(CHAT))
    with pytest.raises(WrongArgument, match="helpful"):
        asking.stream("Hi", weights={"helpful": math.nan})


async def test_a_call_that_waits_for_the_whole_answer_points_to_the_one_that_streams() -> None:
    asking, script = client(ok(CHAT))
    for call in (asking.chat, asking.complete):
        with pytest.raises(WrongArgument, match=r"stream=True: .*; stream\(\) gives"):
            await call("Hi", stream=True)
    with pytest.raises(WrongArgument, match=r"stream=False: .*; chat\(\) gives"):
        asking.stream("Hi", stream=False)
    assert script.requests == []
    await asking.chat("Hi", stream=False)
    assert script.bodies[0]["stream"] is False


async def test_a_stream_may_be_told_that_it_is_one() -> None:
    asking, script = client(streamed(chunk("Hello", finish="stop"), DONE))
    assert [piece.text for piece in await collected(asking.stream("Hi", stream=True))] == ["Hello"]
    assert script.bodies[0]["stream"] is True


@pytest.mark.parametrize("messages", [7, {"role": "user"}, ["Hi"], None])
async def test_messages_of_another_kind_are_refused(messages) -> None:
    asking, _ = client(ok(CHAT))
    with pytest.raises(WrongArgument, match="messages must be"):
        await asking.chat(messages)


@pytest.mark.parametrize(
    "url", ["server", "ftp://server/v1", "http://", "http://key@server/v1", "http://a b/", 7, None]
)
def test_what_is_no_base_url_is_refused(url) -> None:
    with pytest.raises(WrongArgument, match="no base URL"):
        AsyncEftClient(url)


@pytest.mark.parametrize("url", ["http://server", "http://server/", "http://server/v1/", "http://server/v1"])
async def test_a_host_alone_gets_the_usual_path(url) -> None:
    script = Script(ok(MODELS))
    await AsyncEftClient(url, transport=script).models()
    assert str(script.requests[0].url) == "http://server/v1/models"


async def test_the_key_comes_from_the_argument_else_from_the_environment(monkeypatch) -> None:
    async def sent(api_key=None):
        script = Script(ok(MODELS))
        await AsyncEftClient("http://server", api_key, transport=script).models()
        return script.requests[0].headers.get("Authorization")

    assert await sent() is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert await sent() == "Bearer theirs"
    monkeypatch.setenv("EFT_API_KEY", "ours")
    assert await sent() == "Bearer ours"
    assert await sent("given") == "Bearer given"


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    with pytest.raises(WrongArgument) as refused:
        AsyncEftClient(api_key="sk-secret\r\nX: y")
    assert "secret" not in str(refused.value)


async def test_without_a_model_the_first_that_is_listed_is_asked_for_once() -> None:
    script = Script(ok(MODELS), ok(CHAT))
    asking = AsyncEftClient("http://server", transport=script)
    await asyncio.gather(asking.chat("one"), asking.chat("two"))
    assert [request.url.path for request in script.requests].count("/v1/models") == 1
    assert {body["model"] for body in (json.loads(r.content) for r in script.requests[1:])} == {"demo"}


async def test_a_server_without_models_says_so() -> None:
    asking, _ = client(ok({"data": []}), model=None)
    with pytest.raises(BadAnswer, match="lists no model"):
        await asking.chat("Hi")


# What comes back


async def test_a_chat_comes_back_with_text_usage_and_what_was_applied() -> None:
    asking, _ = client(ok(CHAT))
    answer = await asking.chat("Hi")
    assert answer.text == str(answer) == "Hello!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message["role"] == "assistant"
    assert answer.usage and answer.usage.completion_tokens == 2
    assert answer.eft == CHAT["eft"]
    assert answer.model == "demo"
    assert answer.raw == CHAT
    assert repr(answer) == "<ChatResult of demo: 'Hello!'>"


async def test_choices_come_in_order_and_calls_of_tools_are_no_text() -> None:
    choices = [
        {"index": 1, "message": {"role": "assistant", "content": "two"}},
        {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}},
    ]
    asking, _ = client(ok({"choices": choices}))
    answer = await asking.chat("Hi", n=2)
    assert [choice.text for choice in answer.choices] == ["", "two"]
    assert answer.choices[0].message["tool_calls"] == [{"id": "1"}]
    assert answer.eft is None
    assert answer.usage is None


async def test_a_text_is_completed() -> None:
    body = {
        "model": "demo",
        "choices": [{"index": 0, "text": " there", "finish_reason": "length", "logprobs": {"a": 1}}],
    }
    asking, script = client(ok(body))
    answer = await asking.complete([1, 2, 3], scale=0)
    assert (answer.text, answer.choices[0].logprobs) == (" there", {"a": 1})
    assert script.requests[0].url.path == "/v1/completions"
    assert script.bodies == [{"model": "demo", "prompt": [1, 2, 3], "eft": {"scale": 0}}]


async def test_models_are_listed_with_their_weights_and_bounds() -> None:
    asking, _ = client(ok(MODELS))
    cards = await asking.models()
    assert [(card.id, card.kind) for card in cards] == [
        ("demo", "composite"),
        ("demo-careful", "alias"),
        ("demo/base", "member"),
    ]
    assert cards[0].max_model_len == 512
    assert cards[1].scale == 0.5


async def test_another_servers_models_are_listed_too() -> None:
    asking, _ = client(ok({"object": "list", "data": [{"id": "llama", "object": "model"}]}))
    (card,) = await asking.models()
    assert (card.id, card.kind, card.weights, card.bounds) == ("llama", None, {}, None)
    behaviours = await asking.behaviours()
    assert (behaviours.model, behaviours.experts) == (None, ())


async def test_behaviours_say_what_may_be_asked_for() -> None:
    asking, _ = client(ok(MODELS))
    behaviours = await asking.behaviours()
    helpful, harmless = behaviours
    assert (helpful.name, helpful.weight, helpful.min, helpful.max) == ("helpful", 0.5, 0.0, 2.0)
    assert behaviours["harmless"] is harmless
    assert harmless.min == -1.0
    assert behaviours.scale_bounds == (0.0, 2.0)
    assert behaviours.total == 2.0
    assert [card.id for card in behaviours.aliases] == ["demo-careful"]
    assert [card.id for card in behaviours.members] == ["demo/base"]
    with pytest.raises(KeyError, match="known: helpful, harmless"):
        behaviours["unhelpful"]


async def test_behaviours_are_a_table_that_no_description_can_break_out_of() -> None:
    models = json.loads(json.dumps(MODELS))
    models["data"][2]["eft"]["description"] = "<script>alert(1)</script>\x1b[2J"
    asking, _ = client(ok(models))
    behaviours = await asking.behaviours()
    assert "<script>" not in behaviours._repr_html_()
    assert "\x1b" not in repr(behaviours) + behaviours._repr_html_()
    assert "helpful" in repr(behaviours)
    assert "0 to 2" in repr(behaviours)


SCORES = {"logprobs": [-0.5, None], "total": None, "ranks": [1, 300], "top_logprobs": [-0.5, -0.1]}
SCORE = {
    "id": "score-1",
    "object": "eft.score",
    "model": "demo",
    "eft": {"weights": {"helpful": 1.0}},
    "data": [
        {
            "index": 0,
            "object": "eft.score.item",
            "token_ids": [5, 6],
            "tokens": ["He", "llo"],
            "composite": SCORES,
            "members": {"base": SCORES},
            "rewards": {"helpful": {"logprobs": [0.25, None], "total": None}},
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9},
}


async def test_scores_come_back_as_numbers() -> None:
    asking, script = client(ok(SCORE))
    result = await asking.score(
        [ScoreItem(prompt="Say ", completion="Hello", end=True)], weights={"helpful": 1}
    )
    assert script.requests[0].url.path == "/v1/eft/score"
    assert script.bodies == [
        {
            "model": "demo",
            "items": [{"prompt": "Say ", "completion": "Hello", "end": True}],
            "members": True,
            "eft": {"weights": {"helpful": 1}},
        }
    ]
    (item,) = result
    assert item.tokens == ("He", "llo")
    assert item.composite.logprobs == (-0.5, -math.inf)
    assert item.composite.total == -math.inf
    assert item.members["base"].ranks == (1, 300)
    assert item.rewards["helpful"].logprobs[0] == 0.25
    assert math.isnan(item.rewards["helpful"].total)
    assert item.perplexity == math.inf
    assert "Hello" in repr(result)


async def test_statistics_come_back_as_numbers() -> None:
    measured = SCORES | {
        "statistics": {"entropy": [0.5, 0.25], "sum_of_squares": [0.5, 1], "log_rest": [-2, None]}
    }
    answer = {**SCORE, "data": [{**SCORE["data"][0], "composite": measured}]}
    asking, script = client(ok(answer))
    [item] = await asking.score([ScoreItem(prompt="Say ", completion="Hello")], statistics=True)
    assert script.bodies[0]["statistics"] is True
    assert item.composite.statistics.entropy == (0.5, 0.25)
    assert item.composite.statistics.sum_of_squares == (0.5, 1.0)
    assert item.composite.statistics.log_rest == (-2.0, -math.inf)
    assert item.members["base"].statistics is None
    with pytest.raises(WrongArgument, match="statistics"):
        await asking.score([ScoreItem(prompt="Say ", completion="Hello")], statistics="yes")


STATES = {
    "base": {"3": {"shape": [2, 3], "data": base64.b64encode(struct.pack("<6f", *range(6))).decode()}},
    "helpful": {"0": {"shape": [1], "data": base64.b64encode(struct.pack("<f", 0.5)).decode()}},
}


async def test_activations_come_back_as_arrays() -> None:
    asking, script = client(ok({**SCORE, "data": [{**SCORE["data"][0], "activations": STATES}]}))
    asked = Activations(layers=(3,), members=("base", "helpful"), pool="none")
    [item] = await asking.score([ScoreItem(prompt="Say ", completion="Hello")], activations=asked)
    assert script.bodies[0]["activations"] == {
        "layers": [3],
        "members": ["base", "helpful"],
        "site": "residual",
        "pool": "none",
    }
    assert list(item.activations) == ["base", "helpful"]
    states = item.activations["base"][3]
    assert states.shape == (2, 3)
    assert states.values == array("f", range(6))
    assert states.array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert item.activations["helpful"][0].values[0] == 0.5
    assert "(2, 3)" in repr(states)


async def test_activations_may_be_a_plain_object_and_need_layers() -> None:
    asking, script = client(ok(SCORE))
    [item] = await asking.score(
        [ScoreItem(prompt="Say ", completion="Hello")], activations={"layers": "all", "site": "mlp"}
    )
    assert script.bodies[0]["activations"] == {"layers": "all", "site": "mlp"}
    assert item.activations == {}
    for wrong in ({"site": "mlp"}, [0], True):
        with pytest.raises(WrongArgument, match="with layers"):
            await asking.score([ScoreItem(prompt="Say ", completion="Hello")], activations=wrong)


@pytest.mark.parametrize(
    "layer", [{"shape": [3], "data": "AAAA"}, {"shape": [1], "data": "?"}, {"shape": [0]}]
)
async def test_activations_of_another_form_are_no_answer(layer) -> None:
    answer = {**SCORE, "data": [{**SCORE["data"][0], "activations": {"base": {"0": layer}}}]}
    asking, _ = client(ok(answer))
    with pytest.raises(BadAnswer, match="activations"):
        await asking.score([ScoreItem(prompt="Say ", completion="Hello")], activations={"layers": [0]})


async def test_items_may_be_plain_objects_and_members_named() -> None:
    asking, script = client(ok(SCORE))
    messages = [{"role": "user", "content": "Hi"}]
    await asking.score([{"messages": messages, "completion": [5, 6]}], members=["base"])
    assert script.bodies[0]["items"] == [{"messages": messages, "completion": [5, 6]}]
    assert script.bodies[0]["members"] == ["base"]


@pytest.mark.parametrize(
    "items",
    [
        [],
        "Hello",
        {"prompt": "a", "completion": "b"},
        [{"completion": "b"}],
        [{"prompt": "a"}],
        [{"prompt": "a", "messages": [], "completion": "b"}],
        [{"prompt": 7, "completion": "b"}],
    ],
)
async def test_items_that_cannot_be_scored_are_refused(items) -> None:
    asking, script = client(ok(SCORE))
    with pytest.raises(WrongArgument, match="items"):
        await asking.score(items)
    assert script.requests == []


@pytest.mark.parametrize("given", [{}, {"messages": "Hi", "prompt": "Hi"}])
async def test_what_cannot_be_explained_is_refused(given) -> None:
    asking, script = client()
    with pytest.raises(WrongArgument, match="either messages or a prompt"):
        await asking.explain(**given)
    assert script.requests == []


async def test_another_answer_is_no_explanation() -> None:
    for other in (SCORE, {"object": "eft.explanation", "tokens": "none"}):
        asking, _ = client(ok(other))
        with pytest.raises(BadAnswer):
            await asking.explain("Hi", completion="Hello")


async def test_scores_of_other_items_are_no_answer() -> None:
    asking, _ = client(ok(SCORE))
    with pytest.raises(BadAnswer, match="2 items were to be scored"):
        await asking.score([{"prompt": "a", "completion": "b"}] * 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": "Hi"}]}',
        b'{"choices": "' + b"x" * 5000,
        b'{"a": ' * 100_000,
        b'{"choices": [{"message": {"content": {"type": "image_url"}}}]}',
        b'{"choices": [{"message": {"content": "\\ud800}}]}',
        b'{"choices": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
    ],
)
async def test_what_the_protocol_does_not_know_is_a_bad_answer_in_few_words(body) -> None:
    asking, script = client(httpx.Response(200, content=body))
    with pytest.raises(BadAnswer) as refused:
        await asking.chat("Hi")
    assert len(str(refused.value)) < 600
    assert len(script.requests) == 1


async def test_an_answer_too_large_is_not_read_to_its_end(monkeypatch) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1000)
    body = Chunks(*[b"x" * 600] * 3, AssertionError("read too much"))
    asking, _ = client(httpx.Response(200, stream=body))
    with pytest.raises(BadAnswer, match="larger than 1000 bytes"):
        await asking.chat("Hi")
    assert body.closed


async def test_a_compressed_answer_is_refused_since_none_was_asked_for() -> None:
    asking, script = client(httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Chunks(b"bomb")))
    with pytest.raises(BadAnswer, match="Content-Encoding 'gzip'"):
        await asking.chat("Hi")
    assert script.requests[0].headers["Accept-Encoding"] == "identity"


async def test_no_more_are_under_way_than_there_is_room_for() -> None:
    seen, full, go_on = [], asyncio.Event(), asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 2:
            full.set()
        await go_on.wait()
        return ok(CHAT)

    asking = AsyncEftClient(model="demo", max_connections=2, transport=httpx.MockTransport(handle))
    tasks = [asyncio.ensure_future(asking.chat(str(number))) for number in range(5)]
    await full.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(seen) == 2
    go_on.set()
    await asyncio.gather(*tasks)
    assert len(seen) == 5


# Errors and retries


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, Unauthorised),
        (404, NotFound),
        (413, TooLarge),
        (500, ServerFailed),
        (502, ServerFailed),
    ],
)
async def test_errors_carry_the_servers_words_and_are_not_tried_again(status, kind) -> None:
    said = {"param": "eft.weights.helpful", "code": "invalid_behaviour", "headers": {"X-Request-Id": "r-7"}}
    asking, script = client(refusal(status, "7 is out of bounds; allowed: 0 to 2", **said))
    with pytest.raises(kind) as refused:
        await asking.chat("Hi")
    error = refused.value
    assert (error.status, error.message) == (status, "7 is out of bounds; allowed: 0 to 2")
    assert (error.param, error.code, error.request_id) == ("eft.weights.helpful", "invalid_behaviour", "r-7")
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(502, text="<html>Bad\x1b[2J gateway"), "Bad Gateway: <html>Bad␛[2J gateway"),
        (httpx.Response(500, json={"error": "in words"}), "in words"),
        (httpx.Response(422, json={"detail": [{"msg": "Field required"}]}), "Field required"),
        (httpx.Response(400, json={"message": "vLLM's old form", "code": 400}), "vLLM's old form"),
        (httpx.Response(500, content=b"x" * 10_000_000), "Internal Server Error"),
        (httpx.Response(404, json={"error": {"message": {"deep": 1}}}), "deep"),
        (
            httpx.Response(307, headers={"Location": "http://elsewhere/v1"}),
            "it points to 'http://elsewhere/v1'",
        ),
    ],
)
async def test_errors_of_any_form_are_told_in_words(answer, words) -> None:
    asking, _ = client(answer)
    with pytest.raises(ServerAnswered) as refused:
        await asking.chat("Hi")
    assert words in str(refused.value)
    assert len(str(refused.value)) < 2100
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again_when_it_says(status, waits) -> None:
    busy = {"headers": {"Retry-After": "3"}}
    asking, script = client(refusal(status, **busy), refusal(status, **busy), ok(CHAT))
    assert (await asking.chat("Hi")).text == "Hello!"
    assert len(script.requests) == 3
    assert all(3 <= wait <= 3.75 for wait in waits)


async def test_a_server_that_stays_busy_is_given_up(waits) -> None:
    asking, script = client(refusal(429, "full", headers={"Retry-After": "1"}), retries=2)
    with pytest.raises(Busy) as refused:
        await asking.chat("Hi")
    assert refused.value.retry_after_s == 1.0
    assert len(script.requests) == 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("disconnected")],
)
async def test_a_broken_connection_is_tried_again(failure, waits) -> None:
    asking, script = client(failure, ok(CHAT))
    assert (await asking.chat("Hi")).text == "Hello!"
    assert len(script.requests) == 2
    assert len(waits) == 1


async def test_a_server_that_is_not_there_is_named() -> None:
    asking, script = client(httpx.ConnectError("All connection attempts failed"), retries=1)
    with pytest.raises(ConnectionFailed, match=r"http://server/v1: All connection attempts failed"):
        await asking.chat("Hi")
    assert len(script.requests) == 2


async def test_what_took_too_long_is_not_tried_again() -> None:
    asking, script = client(httpx.ReadTimeout("slow"), timeout_s=7)
    with pytest.raises(TimedOut, match="no answer within 7 seconds"):
        await asking.chat("Hi")
    assert len(script.requests) == 1


async def test_a_trickle_of_bytes_does_not_stretch_the_time() -> None:
    body = Chunks(b"{", then_wait=asyncio.Event().wait)
    asking, _ = client(httpx.Response(200, stream=body), timeout_s=0.05)
    with pytest.raises(TimedOut, match=r"no answer within 0\.05 seconds"):
        await asking.chat("Hi")
    assert body.closed


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": math.nan}, {"retries": -1}, {"max_connections": 0}]
)
def test_times_and_counts_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(WrongArgument, match=next(iter(options))):
        AsyncEftClient(**options)


# Streams


async def test_a_stream_comes_piece_by_piece_with_what_was_applied_first() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    asking, script = client(
        streamed(
            chunk("", eft={"model": "demo"}),
            chunk("Hel"),
            chunk("lo", finish="stop"),
            event({"choices": [], "usage": usage}),
            DONE,
        )
    )
    pieces = await collected(
        asking.stream("Hi", weights={"helpful": 1}, stream_options={"include_usage": True})
    )
    assert [piece.text for piece in pieces] == ["", "Hel", "lo", ""]
    assert [piece.eft for piece in pieces] == [{"model": "demo"}, None, None, None]
    assert pieces[2].finish_reason == "stop"
    assert pieces[3].usage and pieces[3].usage.total_tokens == 5
    assert script.bodies[0]["stream"] is True
    assert script.bodies[0]["eft"] == {"weights": {"helpful": 1}}


async def test_pieces_say_which_choice_they_belong_to() -> None:
    asking, _ = client(
        streamed(chunk("a", 0), chunk("b", 1), chunk("", 1, "stop"), chunk("", 0, "stop"), DONE)
    )
    pieces = await collected(asking.stream("Hi", n=2))
    assert [(piece.index, piece.text) for piece in pieces] == [(0, "a"), (1, "b"), (1, ""), (0, "")]


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"message": "non-finite", "type": "server_error", "code": "internal_error"}, ServerFailed, 500),
        ({"message": "bad", "type": "invalid_request_error", "code": None}, BadRequest, 400),
        ({"message": "bad", "type": "BadRequestError", "code": 400}, BadRequest, 400),
        ("in words", ServerFailed, 500),
    ],
)
async def test_an_error_inside_a_stream_is_raised_after_what_came_before(error, kind, status) -> None:
    asking, script = client(streamed(chunk("Hel"), event({"error": error}), DONE))
    pieces = asking.stream("Hi")
    assert (await anext(pieces)).text == "Hel"
    with pytest.raises(kind) as refused:
        await anext(pieces)
    assert refused.value.status == status
    assert len(script.requests) == 1


async def test_a_stream_is_tried_again_only_before_its_first_piece() -> None:
    broken = httpx.ReadError("reset")
    asking, script = client(streamed(broken), refusal(503), streamed(chunk("Hi"), broken))
    pieces = asking.stream("Hi")
    assert (await anext(pieces)).text == "Hi"
    with pytest.raises(ConnectionFailed, match="reset"):
        await anext(pieces)
    assert len(script.requests) == 3


async def test_a_stream_that_ends_too_early_is_not_taken_for_whole() -> None:
    asking, _ = client(streamed(chunk("Hel")), retries=0)
    with pytest.raises(ConnectionFailed, match="broke off"):
        await collected(asking.stream("Hi"))


async def test_a_server_that_does_not_stream_is_told_apart() -> None:
    asking, _ = client(ok(CHAT))
    with pytest.raises(BadAnswer, match="asked for a stream, the server answered with 'application/json'"):
        await collected(asking.stream("Hi"))


async def test_an_event_that_is_no_json_is_a_bad_answer() -> None:
    asking, _ = client(streamed(event("{"), DONE))
    with pytest.raises(BadAnswer, match="not JSON"):
        await collected(asking.stream("Hi"))


async def test_an_endless_stream_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1000)
    asking, _ = client(streamed(*[chunk("x" * 100)] * 20))
    with pytest.raises(BadAnswer, match="larger than 1000 bytes"):
        await collected(asking.stream("Hi"))


async def test_a_stream_that_falls_silent_times_out() -> None:
    body = Chunks(chunk("Hi"), then_wait=asyncio.Event().wait)
    asking, _ = client(streaming(body), timeout_s=0.05)
    pieces = asking.stream("Hi")
    await anext(pieces)
    with pytest.raises(TimedOut):
        await anext(pieces)
    assert body.closed


async def test_the_readers_own_time_does_not_count() -> None:
    asking, _ = client(streamed(chunk("Hel"), chunk("lo"), DONE), timeout_s=0.05)
    pieces = asking.stream("Hi")
    await anext(pieces)
    await asyncio.sleep(0.1)
    assert (await anext(pieces)).text == "lo"


async def test_closing_a_stream_closes_its_connection() -> None:
    body = Chunks(chunk("Hel"), then_wait=asyncio.Event().wait)
    asking, _ = client(streaming(body))
    async with aclosing(asking.stream("Hi")) as pieces:
        await anext(pieces)
        assert not body.closed
    assert body.closed


async def test_cancelling_who_waits_for_a_piece_closes_the_connection() -> None:
    waiting = asyncio.Event()

    async def silence() -> None:
        waiting.set()
        await asyncio.Event().wait()

    body = Chunks(chunk("Hel"), then_wait=silence)
    asking, _ = client(streaming(body))
    task = asyncio.ensure_future(collected(asking.stream("Hi")))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert body.closed


# The surface


def test_all_is_the_public_surface() -> None:
    public = {
        name
        for name, value in vars(eft_client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert sorted(eft_client.__all__) == sorted(public)
    for name in eft_client.__all__:
        value = getattr(eft_client, name)
        assert value is eft_client.UNSET or value.__doc__, name


@pytest.mark.parametrize("face", ["AsyncEftClient", "EftClient"])
def test_signatures_stay_as_they_are(face: str) -> None:
    def names(method: str) -> str:
        parameters = inspect.signature(getattr(getattr(eft_client, face), method)).parameters.values()
        return " ".join(
            f"{'*' * (p.kind == p.KEYWORD_ONLY)}{'**' * (p.kind == p.VAR_KEYWORD)}{p.name}"
            + ("" if p.default is p.empty else f"={p.default!r}")
            for p in parameters
            if p.name != "self"
        )

    asked = "*model=None *weights=None *scale=None *amplify=None *filter=UNSET *coefficients=None"
    report = f"{asked} *report=False"
    assert names("chat") == names("stream") == f"messages {report} **options"
    assert names("complete") == f"prompt {report} **options"
    assert names("chat_many") == f"chats *at_once=None {report} **options"
    assert names("complete_many") == f"prompts *at_once=None {report} **options"
    assert names("answer_many") == "calls *at_once=None"
    assert names("score") == f"items {asked} *members=True *statistics=False *activations=None **options"
    assert names("explain") == f"messages=None *prompt=None *completion=None {asked} **options"
    assert names("models") == names("behaviours") == ""
    assert names("__init__") == (
        "base_url='http://127.0.0.1:8000/v1' api_key=None *model=None *timeout_s=600.0 *retries=4 *max_connections=256 "
        "*transport=None"
    )
