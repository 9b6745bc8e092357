"""POST /v1/responses: what comes back, what the engine is told, and what is refused."""

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from eft_server.api.app import create_app

from .fake_engine import TEXT, FakeEngine
from .served import client_of, family
from .test_app_errors import refusal
from .test_app_tools import FUNCTION, HERMES

pytestmark = pytest.mark.asyncio

PATH = "/v1/responses"
FLAT = {"type": "function"} | FUNCTION
APPLIED = {
    "model": "demo",
    "weights": {"helpful": 0.75, "harmless": 0.0},
    "scale": 1.0,
    "amplify": 1.0,
    "filter": None,
}
EFT = {"weights": {"helpful": 0.75}}


def stream_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of a kind that OpenAI's client knows and named by its event line."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        TypeAdapter(ResponseStreamEvent).validate_python(found[-1])
    return found


async def test_a_response_is_answered_with_the_weights_that_were_applied(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {
        "input": "Hi",
        "instructions": "Be kind.",
        "max_output_tokens": 4,
        "eft": EFT,
        "metadata": {"a": "b"},
    }
    answer = (await client.post(PATH, json=body)).json()
    assert answer["output"][0]["content"][0]["text"] == TEXT
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["eft"] == APPLIED
    assert answer["metadata"] == {"a": "b"}
    assert Response.model_validate(answer).output_text == TEXT
    assert engine.asked[0].extra_args == {"eft": [1.0, -0.75, 0.75, 0.0]}
    assert engine.prompts == ["<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"]


async def test_every_response_object_of_a_stream_has_the_weights(client: httpx.AsyncClient) -> None:
    body = {"input": "Hi", "max_output_tokens": 4, "eft": EFT, "stream": True}
    response = await client.post(PATH, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = stream_of(response)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[0]["type"] == "response.created"
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found[-1]["response"]["status"] == "incomplete"
    (item,) = found[-1]["response"]["output"]
    assert item == next(event["item"] for event in found if event["type"] == "response.output_item.done")
    assert item["status"] == "incomplete"
    assert [event["response"]["eft"] for event in found if "response" in event] == [APPLIED] * 3
    assert "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta") == TEXT


async def test_a_stream_that_was_not_cut_is_completed(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = TEXT
    found = stream_of(await client.post(PATH, json={"input": "Hi", "stream": True}))
    assert found[-1]["type"] == "response.completed"
    assert found[-1]["response"]["incomplete_details"] is None
    assert found[-1]["response"]["output"][0]["status"] == "completed"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_was_cut_is_incomplete(engine: FakeEngine, stream: bool) -> None:
    async with client_of(create_app(engine, family(tool_parser="hermes"))) as client:
        engine.script, engine.cut = HERMES + '<tool_call>{"name": "jump", "arguments": {"hei', True
        response = await client.post(PATH, json={"input": "Hi", "tools": [FLAT], "stream": stream})
        answer = stream_of(response)[-1]["response"] if stream else response.json()
    assert [item["type"] for item in answer["output"]] == ["function_call"] * 2
    assert [item["status"] for item in answer["output"]] == ["completed", "incomplete"]
    assert answer["output"][1]["arguments"] == '{"hei'
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("model", ["demo-helpful", "demo/base"])
async def test_aliases_and_members_are_models(client: httpx.AsyncClient, model: str) -> None:
    answer = (await client.post(PATH, json={"input": "Hi", "model": model})).json()
    assert answer["model"] == answer["eft"]["model"] == model


async def test_flat_xargs_say_the_same_as_eft(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(PATH, json={"input": "Hi", "vllm_xargs": {"eft.helpful": 0.75}})
    assert engine.asked[0].extra_args == {"eft": [1.0, -0.75, 0.75, 0.0]}


async def test_no_part_of_a_message_is_lost(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in ("B", "C")]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "A"}]},
        {"type": "message", "id": "msg_1", "status": "incomplete", "role": "assistant", "content": parts},
        {"role": "user", "content": "D"},
    ]
    assert (await client.post(PATH, json={"input": items})).status_code == 200
    assert engine.prompts == ["<|user|>A<|end|><|assistant|>B\nC<|end|><|user|>D<|end|><|assistant|>"]


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [5],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logit_bias": {"7": 1.5},
    }
    response = await client.post(PATH, json={"input": "Hi", **given})
    assert response.status_code == 200, response.text
    expected = given | {"logit_bias": {7: 1.5}}
    assert {name: getattr(engine.asked[0], name) for name in expected} == expected


async def test_logprobs_come_with_include(client: httpx.AsyncClient) -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 2}
    answer = (await client.post(PATH, json={"input": "Hi", **wanted})).json()
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [len(token["top_logprobs"]) for token in logprobs] == [2, 2]


async def test_a_json_schema_reaches_the_engine_and_comes_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = "{}"
    wanted = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    answer = (await client.post(PATH, json={"input": "Hi", "text": {"format": wanted}})).json()
    assert engine.asked[0].structured_outputs.json == {"type": "object"}
    assert answer["text"]["format"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_taken(engine: FakeEngine, stream: bool) -> None:
    async with client_of(create_app(engine, family(tool_parser="hermes"))) as client:
        engine.script = HERMES
        body = {"input": "Hi", "tools": [FLAT], "tool_choice": "required", "stream": stream}
        response = await client.post(PATH, json=body)
        answer = stream_of(response)[-1]["response"] if stream else response.json()
        (call,) = answer["output"]
        assert (call["type"], call["name"]) == ("function_call", "jump")
        assert json.loads(call["arguments"]) == {"height": 3}
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
        items = [{"role": "user", "content": "Hi"}, call, result]
        again = await client.post(PATH, json={"input": items, "tools": [FLAT]})
        assert again.status_code == 200, again.text
        assert "<|tool|>done" in engine.prompts[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["Hi"]}, "input.0"),
        ({"input": [{"role": "wizard", "content": "a"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input.0.name"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input.0"),
        ({"eft": {"weights": {"helpful": 9}}}, "eft.weights.helpful"),
        ({"model": "demo/base", "eft": {"scale": 1}}, "eft"),
        ({"tools": [FLAT]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"prompt": {"id": "a"}}, "prompt"),
        ({"conversation": "a"}, "conversation"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"service_tier": []}, "service_tier"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"$ref": "#"}}}},
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"structured_outputs": {"regex": "(a+)+b"}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}},
            "structured_outputs",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 1000}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_served_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, stream: bool
) -> None:
    error = refusal(await client.post(PATH, json={"input": "Hi", "stream": stream} | fields))
    assert error["param"] == param
    assert engine.asked == []


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    assert refusal(await client.post(PATH, json={"input": "a", "model": "gpt-4"}), 404)["param"] == "model"


async def test_what_an_openai_client_sends_as_a_default_asks_for_nothing(client: httpx.AsyncClient) -> None:
    defaults = {
        "store": False,
        "background": False,
        "tools": None,
        "previous_response_id": None,
        "truncation": "disabled",
        "service_tier": "auto",
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
    }
    response = await client.post(PATH, json={"input": "Hi", **defaults})
    assert response.status_code == 200, response.text


async def test_a_request_that_fails_in_the_engine_is_a_server_error(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 1
    for stream in (False, True):
        response = await client.post(PATH, json={"input": "Hi", "stream": stream})
        assert "resp_" in refusal(response, 500)["message"]


async def test_a_stream_that_fails_half_way_ends_in_an_error(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 3
    response = await client.post(PATH, json={"input": "Hi", "stream": True})
    assert response.status_code == 200
    last = response.text.strip().split("\n\n")[-2]
    assert "failed in the engine" in json.loads(last.removeprefix("data: "))["error"]["message"]


async def test_a_response_that_takes_too_long_is_ended(engine: FakeEngine) -> None:
    engine.pause_s = 0.2
    async with client_of(create_app(engine, family(request_timeout_s=0.3))) as client:
        refusal(await client.post(PATH, json={"input": "Hi"}), 504)
    assert len(engine.aborted) == 1
