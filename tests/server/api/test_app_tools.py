"""Tools: which requests may bring them, what the engine is told, and what comes back of a parser's reading."""

import json
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

FUNCTION: dict[str, Any] = {
    "name": "jump",
    "description": "Jump over something.",
    "parameters": {"type": "object", "properties": {"height": {"type": "integer"}}, "required": ["height"]},
}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
ASKED: dict[str, Any] = {"messages": HELLO, "tools": [TOOL]}
BY_NAME = {"type": "function", "function": {"name": "jump"}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "jump", "arguments": '{"height": 3}'}}

HERMES = '<tool_call>\n{"name": "jump", "arguments": {"height": 3}}\n</tool_call>'
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(params=["hermes"])
async def tools(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose operator has named a tool parser."""
    async with client_of(create_app(engine, family(tool_parser=request.param))) as client:
        yield client


@pytest.mark.parametrize("choice", ["auto", "required", BY_NAME])
async def test_a_call_is_read_out_of_what_the_members_write(
    tools: httpx.AsyncClient, engine: FakeEngine, choice: Any
) -> None:
    engine.script = HERMES
    body = ASKED | {"tool_choice": choice, "n": 2, "logprobs": True}
    answer = (await tools.post(CHAT, json=body)).json()
    for answered in answer["choices"]:
        (call,) = answered["message"]["tool_calls"]
        assert call["function"]["name"] == "jump"
        assert json.loads(call["function"]["arguments"]) == {"height": 3}
        assert answered["logprobs"]["content"]
    assert answer["eft"]["model"] == "demo"
    assert engine.asked[0].extra_args == {"eft": [1.0, -1.0, 0.5, 0.5]}
    assert '"name": "jump"' in engine.prompts[0]


async def test_a_call_is_streamed(tools: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = HERMES
    chunks = events(await tools.post(CHAT, json=ASKED | {"stream": True}))
    parts = [call["function"] for c in chunks for call in c["choices"][0]["delta"].get("tool_calls") or ()]
    assert "".join(part.get("name") or "" for part in parts) == "jump"
    assert json.loads("".join(part.get("arguments") or "" for part in parts)) == {"height": 3}
    assert chunks[0]["eft"]["scale"] == 1.0
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_that_has_to_be_made_is_a_grammar_in_the_engine(
    tools: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = HERMES
    strict = {"type": "function", "function": FUNCTION | {"strict": True}}
    for choice, tool in (("auto", TOOL), ("none", TOOL), ("required", TOOL), (BY_NAME, strict)):
        await tools.post(CHAT, json={"messages": HELLO, "tools": [tool], "tool_choice": choice})
    free, off, required, named = (asked.structured_outputs for asked in engine.asked)
    assert free is off is None
    assert "jump" in required.structural_tag
    assert "height" in named.structural_tag


@pytest.mark.parametrize("tools", ["granite"], indirect=True)
async def test_a_parser_of_plain_json_calls_by_a_schema(tools: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = '[{"name": "jump", "parameters": {"height": 3}}]'
    answer = (await tools.post(CHAT, json=ASKED | {"tool_choice": "required"})).json()
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "jump"
    assert engine.asked[0].structured_outputs.json["minItems"] == 1


async def test_with_tool_choice_none_nothing_is_read_as_a_call(
    tools: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = HERMES
    answer = (await tools.post(CHAT, json=ASKED | {"tool_choice": "none"})).json()
    assert answer["choices"][0]["message"]["content"] == HERMES


async def test_calls_and_what_they_gave_reach_the_template(
    tools: httpx.AsyncClient, engine: FakeEngine
) -> None:
    made = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": None, "refusal": None}
    result = {"role": "tool", "tool_call_id": "call-1", "content": "done"}
    response = await tools.post(CHAT, json=ASKED | {"messages": [*HELLO, made, result]})
    assert response.status_code == 200, response.text
    assert '"height": 3' in engine.prompts[0]
    assert "<|tool|>done" in engine.prompts[0]


async def test_a_format_that_is_plain_text_stands_in_no_tools_way(tools: httpx.AsyncClient) -> None:
    response = await tools.post(CHAT, json=ASKED | {"response_format": {"type": "text"}})
    assert response.status_code == 200, response.text


async def test_tools_are_counted_by_tokenize(tools: httpx.AsyncClient) -> None:
    plain = (await tools.post("/tokenize", json={"messages": HELLO})).json()["count"]
    assert (await tools.post("/tokenize", json=ASKED)).json()["count"] > plain


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "a"}]}, "messages.0.role"),
    ],
)
async def test_without_a_parser_the_operator_is_told_what_to_set(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    error = refusal(await client.post(CHAT, json={"messages": HELLO} | fields))
    assert error["param"] == param
    assert "server.tool_parser" in error["message"]
    assert engine.asked == []


def with_parameters(parameters: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": FUNCTION | {"parameters": parameters}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{}]}, "tools.0.type"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": [TOOL | {"b": 1}]}, "tools.0"),
        ({"tools": [TOOL, TOOL]}, "tools.1"),
        ({"tools": [{}] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": FUNCTION | {"a": 1}}]}, "tools.0.function.a"),
        ({"tools": [{"type": "function", "function": FUNCTION | {"strict": 1}}]}, "tools.0.function.strict"),
        (with_parameters([]), "tools.0.function.parameters"),
        (with_parameters({"type": "string"}), "tools.0.function.parameters"),
        (with_parameters({"properties": {"a": {"$ref": "#"}}}), "tools.0.function.parameters"),
        (with_parameters({"properties": {"a": {"not": {}}}}), "tools.0.function.parameters"),
        (with_parameters({"properties": {"a": {"type": "string", "pattern": "(a+)+b"}}}), "tools.0"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "any", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "jump"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sit"}}, "tools": [TOOL]}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "tools"),
        ({"tools": [TOOL], "bad_words": ["a"]}, "bad_words"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages.0.tool_calls.0"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL | {"id": ""}]}]},
            "messages.0.tool_calls.0.id",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [CALL | {"function": {"name": "jump", "arguments": "[" * 9000}}],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "a"}]}, "messages.0.tool_call_id"),
    ],
)
async def test_tools_that_cannot_be_called_are_refused_by_name(
    tools: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    assert refusal(await tools.post(CHAT, json={"messages": HELLO} | fields))["param"] == param
    assert engine.asked == []


@pytest.mark.parametrize("arguments", ["null", "3", "[1]", '{"hei', ""])
async def test_a_call_comes_back_as_it_was_made(
    tools: httpx.AsyncClient, engine: FakeEngine, arguments: str
) -> None:
    call = CALL | {"function": {"name": "jump", "arguments": arguments}, "index": 0}
    said: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "Done."},
    ]
    assert (await tools.post(CHAT, json={"messages": [*HELLO, *said]})).status_code == 200
    items = [
        {"type": "function_call", "call_id": "call-1", "name": "jump", "arguments": arguments},
        {"type": "function_call_output", "call_id": "call-1", "output": "Done."},
    ]
    body = {
        "input": [{"role": "user", "content": "Hi"}, *items],
        "tools": [TOOL["function"] | {"type": "function"}],
    }
    assert (await tools.post("/v1/responses", json=body)).status_code == 200


CUT = 'Well.\n<tool_call>\n{"name": "jump", "arguments": {"height": 3'


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    "script", [CUT, HERMES + '\n<tool_call>\n{"name": "jump", "arguments": {"hei', "<tool_c"]
)
async def test_a_call_that_is_cut_is_the_same_whole_as_streamed(
    tools: httpx.AsyncClient, engine: FakeEngine, script: str, choice: str
) -> None:
    engine.script, engine.cut = script, True
    body = ASKED | {"tool_choice": choice}
    chunks = events(await tools.post(CHAT, json=body | {"stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    streamed: dict[int, list[str]] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls") or ()):
        call = streamed.setdefault(part["index"], ["", ""])
        call[0] += part["function"].get("name") or ""
        call[1] += part["function"].get("arguments") or ""
    (answered,) = (await tools.post(CHAT, json=body)).json()["choices"]
    calls = [call["function"] for call in answered["message"].get("tool_calls", ())]
    assert [[call["name"], call["arguments"]] for call in calls] == list(streamed.values())
    content = answered["message"]["content"] or ""
    assert content == "".join(delta.get("content") or "" for delta in deltas)
    assert "<" not in content
    assert answered["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["auto", "required", BY_NAME])
@pytest.mark.parametrize(
    ("script", "reason"),
    [(CUT, "stop"), ("<tool_c", "stop"), ("", "stop"), (HERMES, "tool_calls")],
)
async def test_a_call_that_a_stop_string_cut_off_is_none_to_be_made(
    tools: httpx.AsyncClient, engine: FakeEngine, choice: Any, script: str, reason: str
) -> None:
    engine.script, engine.stops = script or "Well.", True
    body = ASKED | {"tool_choice": choice, "stop": ["!"]}
    (answered,) = (await tools.post(CHAT, json=body)).json()["choices"]
    chunks = events(await tools.post(CHAT, json=body | {"stream": True}))
    reason = "stop" if choice is BY_NAME else reason  # As OpenAI has it.
    assert answered["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == reason
    assert bool(answered["message"].get("tool_calls")) is (script in (CUT, HERMES))


async def test_a_call_that_was_cut_behind_its_end_is_called_cut(
    tools: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script, engine.cut = HERMES, True
    (answered,) = (await tools.post(CHAT, json=ASKED)).json()["choices"]
    assert answered["message"]["tool_calls"][0]["function"]["name"] == "jump"
    assert answered["finish_reason"] == "length"


@pytest.mark.parametrize("tools", ["hermes", "phi4_mini_json"], indirect=True)
@pytest.mark.parametrize("cut", [False, True])
async def test_an_answer_without_a_call_is_left_alone(
    tools: httpx.AsyncClient, engine: FakeEngine, cut: bool
) -> None:
    engine.script, engine.cut = "1 < 2, and <b>that</b> is all. 😀", cut
    (answered,) = (await tools.post(CHAT, json=ASKED)).json()["choices"]
    assert answered["message"]["content"] == engine.script
    assert answered["finish_reason"] == ("length" if cut else "stop")
