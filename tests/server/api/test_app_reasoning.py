"""Reasoning: told apart from the answer by a parser, switched by what the chat template reads."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from eft_server.api.app import create_app

from .fake_engine import FakeEngine
from .served import client_of, family
from .test_app_errors import refusal
from .test_app_routes import HELLO, events

pytestmark = pytest.mark.asyncio

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
THOUGHT = "<think>Two and two.</think>It is 4."


@pytest_asyncio.fixture
async def thinking(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose operator has named a reasoning parser, over an engine that thinks."""
    engine.script = THOUGHT
    async with client_of(create_app(engine, family(reasoning_parser="deepseek_r1"))) as client:
        yield client


async def test_a_chat_tells_reasoning_from_the_answer(thinking: httpx.AsyncClient) -> None:
    answer = (await thinking.post(CHAT, json={"messages": HELLO})).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Two and two.", "It is 4.")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_a_streamed_chat_does_so_too(thinking: httpx.AsyncClient) -> None:
    chunks = events(await thinking.post(CHAT, json={"messages": HELLO, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == "Two and two."
    assert "".join(delta.get("content") or "" for delta in deltas) == "It is 4."


async def test_reasoning_can_be_left_out(thinking: httpx.AsyncClient) -> None:
    answer = await thinking.post(CHAT, json={"messages": HELLO, "include_reasoning": False})
    message = answer.json()["choices"][0]["message"]
    assert "reasoning" not in message
    assert message["content"] == "It is 4."


async def test_a_response_has_reasoning_as_an_item(thinking: httpx.AsyncClient) -> None:
    reasoning, message = (await thinking.post(RESPONSES, json={"input": "Hi"})).json()["output"]
    assert reasoning["content"][0]["text"] == "Two and two."
    assert message["content"][0]["text"] == "It is 4."


async def test_a_response_can_go_back_in_as_it_came_out(
    thinking: httpx.AsyncClient, engine: FakeEngine
) -> None:
    output = (await thinking.post(RESPONSES, json={"input": "Hi"})).json()["output"]
    question = {"role": "user", "content": "And three?"}
    response = await thinking.post(RESPONSES, json={"input": [*HELLO, *output, question]})
    assert response.status_code == 200, response.text
    assert "<|assistant|>It is 4.<|end|><|user|>And three?" in engine.prompts[1]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
        (CHAT, {"reasoning_effort": "none"}),
        (RESPONSES, {"reasoning": {"effort": "none"}}),
        ("/tokenize", {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
async def test_a_switch_that_the_template_reads_is_turned(
    thinking: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    body = {"input": "Hi"} if path == RESPONSES else {"messages": HELLO}
    response = await thinking.post(path, json=body | fields)
    assert response.status_code == 200, response.text
    if path == "/tokenize":
        text = (await thinking.post("/detokenize", json={"tokens": response.json()["tokens"]})).json()[
            "prompt"
        ]
    else:
        text = engine.prompts[0]
    assert text.endswith("<think></think>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"reasoning": {"effort": "none"}}, "reasoning"),
        ({"messages": [{"role": "user", "content": "a", "reasoning": "b"}]}, "messages.0.reasoning"),
    ],
)
async def test_what_would_change_nothing_is_refused(
    thinking: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    assert refusal(await thinking.post(CHAT, json={"messages": HELLO} | fields))["param"] == param
    assert engine.asked == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": HELLO, "include_reasoning": False}),
        (CHAT, {"messages": [{"role": "assistant", "content": "a", "reasoning": "b"}]}),
        (RESPONSES, {"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]}]}),
    ],
)
async def test_without_a_parser_the_operator_is_told_what_to_set(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    assert "server.reasoning_parser" in refusal(await client.post(path, json=fields))["message"]


async def test_a_template_that_reads_no_switch_has_none(engine: FakeEngine) -> None:
    app = create_app(engine, family(), chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    async with client_of(app) as client:
        body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": True}}
        assert "does not use" in refusal(await client.post(CHAT, json=body))["message"]
        body = {"input": "Hi", "reasoning": {"effort": "none"}}
        assert refusal(await client.post(RESPONSES, json=body))["param"] == "reasoning.effort"
