"""What other servers make of the protocol: an answer that OpenAI's own client takes is not thrown away."""

import json
import math
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from eft_client import AsyncEftClient, BadAnswer, ConnectionFailed, Usage

from .scripted import CHAT, Script, chunk, event, streamed

DONE = event("[DONE]")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def client(*answers: httpx.Response) -> AsyncEftClient:
    return AsyncEftClient("http://server/v1", model="demo", transport=Script(*answers), retries=0)


async def theirs(answer: httpx.Response, **options: Any) -> Any:
    """What the answer says by OpenAI's client."""
    headers, body = answer.headers, await answer.aread()

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, content=body)

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    async with AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http) as asking:
        messages: Any = [{"role": "user", "content": "Hi"}]
        given = await asking.chat.completions.create(model="demo", messages=messages, **options)
        if not options.get("stream"):
            return given.choices[0].message.content or "" if given.choices[0].message else ""
        texts = [c.delta.content or "" async for piece in given for c in piece.choices or () if c.delta]
        return "".join(texts)


def choice(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None} | fields]})


ODD_CHUNKS = {
    "choices null": event({"choices": None, "usage": USAGE}),
    "no choices": event({"usage": USAGE}),
    "delta null": choice(delta=None),
    "no delta": event({"choices": [{"index": 0}]}),
    "content null": choice(delta={"role": "assistant", "content": None}),
    "tool_calls null": choice(delta={"content": "", "tool_calls": None, "reasoning_content": None}),
    "logprobs null": choice(logprobs=None),
    "logprobs a list": choice(logprobs=[]),
    "index null": choice(index=None),
    "index a float": choice(index=0.0),
    "index text": choice(index="0"),
    "index a word": choice(index="first"),
    "logprobs not finite": choice(logprobs={"content": [{"token": "a", "logprob": float("nan")}]}),
    "logprobs too large": event('{"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [1e400]}}]}'),
    "usage null": event({"choices": [], "usage": None}),
    "usage text": event({"choices": [], "usage": "none"}),
    "counts null": event({"choices": [], "usage": dict.fromkeys(USAGE)}),
    "counts floats": event({"choices": [], "usage": {name: float(n) for name, n in USAGE.items()}}),
    "counts text": event({"choices": [], "usage": dict.fromkeys(USAGE, "many")}),
    "counts with details null": event({"choices": [], "usage": USAGE | {"prompt_tokens_details": None}}),
    "id a number": event({"id": 7, "choices": []}),
    "id an object": event({"id": {"a": 1}, "choices": []}),
    "model null": event({"model": None, "choices": []}),
    "model a number": event({"model": 7, "choices": []}),
    "error null": event({"error": None, "choices": []}),
    "eft null": event({"eft": None, "choices": []}),
    "eft text": event({"eft": "on", "choices": []}),
    "all null": event(
        dict.fromkeys(("id", "object", "created", "model", "choices", "usage", "error", "eft"))
    ),
}


@pytest.mark.parametrize("odd", ODD_CHUNKS.values(), ids=ODD_CHUNKS)
async def test_a_stream_with_an_odd_chunk_says_what_openai_s_client_says(odd: bytes) -> None:
    chunks = (chunk("", finish=None), odd, chunk("Hello"), odd, chunk("!", finish="stop"), odd, DONE)
    said = "".join([piece.text async for piece in client(streamed(*chunks)).stream("Hi")])
    assert said == await theirs(streamed(*chunks), stream=True)
    assert said.replace("Hi", "") == "Hello!"


async def test_counts_of_a_stream_are_whole_numbers_or_none_at_all() -> None:
    async def usage(counts: Any) -> Usage | None:
        chunks = streamed(chunk("Hi", finish="stop"), event({"choices": None, "usage": counts}), DONE)
        return [piece async for piece in client(chunks).stream("Hi")][-1].usage

    assert await usage({name: float(count) for name, count in USAGE.items()}) == Usage(**USAGE)
    assert await usage(USAGE | {"total_tokens": None}) == Usage(**USAGE | {"total_tokens": 0})
    assert await usage(dict.fromkeys(USAGE, "many")) is None


@pytest.mark.parametrize("last", [b"", event({"choices": [], "usage": USAGE}), choice(delta={})])
async def test_a_finished_stream_needs_no_end_mark(last: bytes) -> None:
    chunks = (chunk("Hel"), chunk("lo"), chunk("", finish="stop"), last)
    said = "".join([piece.text async for piece in client(streamed(*chunks)).stream("Hi")])
    assert said == await theirs(streamed(*chunks), stream=True) == "Hello"


async def test_the_end_mark_may_be_followed_by_anything() -> None:
    chunks = (chunk("Hello", finish="stop"), event("[DONE] bye"), event("{"))
    said = "".join([piece.text async for piece in client(streamed(*chunks)).stream("Hi")])
    assert said == await theirs(streamed(*chunks), stream=True) == "Hello"


@pytest.mark.parametrize(
    "cut",
    [
        (),
        (chunk("Hel"),),
        (chunk("Hel"), event({"choices": [], "usage": USAGE})),
        (chunk("a", 0, "stop"), chunk("b", 1)),
        (chunk("a", 0, "stop"),),
        (chunk("a", 0, "stop"), chunk("b", 1, "stop"), httpx.ReadError("reset")),
    ],
)
async def test_a_stream_that_is_cut_before_every_choice_has_ended_stays_an_error(cut: Any) -> None:
    with pytest.raises(ConnectionFailed):
        [piece async for piece in client(streamed(*cut)).stream("Hi", n=2)]


async def test_every_choice_that_was_asked_for_may_end_without_a_mark() -> None:
    chunks = streamed(chunk("a", 0), chunk("b", 1, "stop"), chunk("", 0, "length"))
    pieces = [piece async for piece in client(chunks).stream("Hi", n=2)]
    assert [piece.finish_reason for piece in pieces] == [None, "stop", "length"]


ODD_ANSWERS = {
    "usage null": {"usage": None},
    "counts null": {"usage": dict.fromkeys(USAGE)},
    "counts floats": {"usage": {name: float(count) for name, count in USAGE.items()}},
    "usage a list": {"usage": []},
    "id a number": {"id": 12345},
    "id null": {"id": None},
    "id a list": {"id": [1]},
    "model a number": {"model": 7},
    "eft null": {"eft": None},
    "error null": {"error": None},
    "finish_reason a number": {
        "choices": [{"index": 0, "message": {"content": "Hello!"}, "finish_reason": 2}]
    },
    "all optional null": {
        "choices": [
            {
                "index": None,
                "message": {"role": None, "content": "Hello!", "tool_calls": None, "function_call": None},
                "finish_reason": None,
                "logprobs": None,
            }
        ]
    },
}


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_an_odd_answer_says_what_openai_s_client_says(odd: dict[str, Any]) -> None:
    def body() -> httpx.Response:
        return httpx.Response(200, json=CHAT | odd)

    assert (await client(body()).chat("Hi")).text == await theirs(body()) == "Hello!"


async def test_what_cannot_be_read_of_logprobs_and_behaviour_is_none() -> None:
    half = '{"index": 0, "message": {"content": "Hi"}, "logprobs": {"content": [{"logprob": 1e400}]}}'
    body = (
        f'{{"choices": [{half}], "eft": {{"weights": {{"helpful": NaN}}}}, "usage": {{"total_tokens": NaN}}}}'
    )
    answer = await client(httpx.Response(200, content=body.encode())).chat("Hi")
    assert (answer.text, answer.choices[0].logprobs, answer.eft, answer.usage) == ("Hi", None, None, None)
    chunks = streamed(event(body.replace("message", "delta")), chunk("", finish="stop"), DONE)
    pieces = [piece async for piece in client(chunks).stream("Hi")]
    assert [(piece.text, piece.logprobs, piece.eft) for piece in pieces] == [
        ("Hi", None, None),
        ("", None, None),
    ]


async def test_indices_are_numbers_or_places() -> None:
    odd = [{"index": index, "message": {"content": str(place)}} for place, index in enumerate(["1", "0"])]
    answer = await client(httpx.Response(200, json=CHAT | {"choices": odd})).chat("Hi", n=2)
    assert [(one.index, one.text) for one in answer.choices] == [(0, "1"), (1, "0")]
    unread = [{"index": {}, "message": {"content": text}} for text in "ab"]
    answer = await client(httpx.Response(200, json=CHAT | {"choices": unread})).chat("Hi", n=2)
    assert [(one.index, one.text) for one in answer.choices] == [(0, "a"), (1, "b")]


HALVES = "\ud83d", "\ude00"


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (HALVES, ["", "😀"]),
        (("a\ud83d", "\ude00b"), ["a", "😀b"]),
        (("\ud83d\ude00", "!"), ["😀", "!"]),
        (("\ud83d", "", "\ude00"), ["", "", "😀"]),
        (("\ud83d", "x"), ["", "\ufffdx"]),
        (("x", "\ude00"), ["x", "\ufffd"]),
    ],
)
async def test_characters_that_were_cut_in_two_are_put_together(pieces: Any, said: list[str]) -> None:
    chunks = (*(chunk(piece) for piece in pieces), chunk("", finish="stop"), DONE)
    found = [piece.text async for piece in client(streamed(*chunks)).stream("Hi")]
    assert found == [*said, ""]
    assert (await theirs(streamed(*chunks), stream=True)).encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    ) == "".join(said)


async def test_a_half_waits_for_its_own_choice_and_for_no_end() -> None:
    chunks = (
        chunk(HALVES[0], 0),
        chunk("b", 1, "stop"),
        chunk(HALVES[1], 0),
        chunk(HALVES[0], 0, "stop"),
        DONE,
    )
    pieces = [piece async for piece in client(streamed(*chunks)).stream("Hi", n=2)]
    assert [(piece.index, piece.text) for piece in pieces] == [(0, ""), (1, "b"), (0, "😀"), (0, "\ufffd")]


async def test_a_whole_answer_with_half_a_character_has_a_sign_for_it() -> None:
    odd = {"choices": [{"index": 0, "message": {"content": "a\ud83d b\ud83d\ude00"}}]}
    answer = await client(httpx.Response(200, content=json.dumps(CHAT | odd).encode())).chat("Hi")
    assert answer.text == "a\ufffd b😀"
    text = {"choices": [{"index": 0, "text": "a\ud83d"}]}
    assert (
        await client(httpx.Response(200, content=json.dumps(text).encode())).complete("Hi")
    ).text == "a\ufffd"


PARTS = [
    {"type": "text", "text": "Hel"},
    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
    {"type": "image_url", "image_url": {"url": "x"}},
    {"type": "text", "text": None},
    {"type": "text", "text": "lo"},
]


async def test_a_content_of_parts_says_what_its_texts_say() -> None:
    odd = {"choices": [{"index": 0, "message": {"content": PARTS}, "finish_reason": "stop"}]}
    answer = await client(httpx.Response(200, json=CHAT | odd)).chat("Hi")
    assert (answer.text, answer.choices[0].message["content"]) == ("Hello", PARTS)
    assert await theirs(httpx.Response(200, json=CHAT | odd)) == PARTS
    chunks = streamed(choice(delta={"content": PARTS}), chunk("!", finish="stop"), DONE)
    assert "".join([piece.text async for piece in client(chunks).stream("Hi")]) == "Hello!"


async def test_scores_that_are_not_finite_are_no_scores() -> None:
    one = {"logprobs": [-1.0], "total": -1.0, "ranks": [1], "top_logprobs": [-1.0]}
    item = {"index": 0, "token_ids": [1], "tokens": ["a"], "composite": one}
    for total, fine in (("null", True), ("NaN", False), ("-1e400", False)):
        body = json.dumps({"object": "eft.score", "data": [item]}).replace(
            '"total": -1.0', f'"total": {total}'
        )
        asking = client(httpx.Response(200, content=body.encode())).score(
            [{"prompt": "a", "completion": "b"}]
        )
        if fine:
            assert (await asking)[0].composite.total == -math.inf
        else:
            with pytest.raises(BadAnswer, match="finite"):
                await asking


async def test_a_message_that_is_null_says_nothing() -> None:
    odd = {"choices": [{"index": 0, "message": None, "finish_reason": "length"}]}
    answer = await client(httpx.Response(200, json=CHAT | odd)).chat("Hi")
    assert (answer.text, answer.choices[0].message) == ("", {})


async def test_ids_and_reasons_of_another_type_are_words() -> None:
    odd = {"id": 12345, "choices": [{"message": {"content": "Hi"}, "finish_reason": 2}], "model": 7}
    answer = await client(httpx.Response(200, json=odd)).chat("Hi")
    assert (answer.id, answer.choices[0].finish_reason, answer.model) == ("12345", "2", "7")


async def test_a_text_that_is_null_is_empty() -> None:
    odd = {"choices": [{"index": 0.0, "text": None, "finish_reason": "length", "logprobs": None}]}
    answer = await client(httpx.Response(200, json=odd)).complete("Hi")
    assert (answer.text, answer.choices[0].index) == ("", 0)


async def test_models_may_say_null_for_what_they_do_not_say() -> None:
    card = {"id": "llama", "eft": None, "max_model_len": 512.0, "created": None}
    blank = {"id": 7, "max_model_len": None, "eft": dict.fromkeys(("kind", "weights", "scale", "bounds"))}
    listed = await client(httpx.Response(200, json={"data": [card, blank]})).models()
    assert [(one.id, one.max_model_len, one.scale) for one in listed] == [
        ("llama", 512, 1.0),
        ("7", None, 1.0),
    ]
    assert await client(httpx.Response(200, json={"data": None})).models() == []


@pytest.mark.parametrize("odd", [{"choices": None}, {"choices": [None]}, {"choices": [{"message": "Hi"}]}])
async def test_an_answer_without_a_choice_stays_none(odd: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        await client(httpx.Response(200, json=CHAT | odd)).chat("Hi")
