"""What is refused, and in which words: always OpenAI's error shape, never a 5xx for what a client did."""

import asyncio
from typing import Any

import httpx
import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from .fake_engine import FakeEngine

pytestmark = pytest.mark.asyncio

HELLO = [{"role": "user", "content": "Hi"}]
SCHEMA = {"name": "a", "schema": {"type": "object"}}
LONG_NAME = {"type": "object", "properties": {"a" * 14_000: {}}, "additionalProperties": True}
LONG_NAMES = {
    "type": "object",
    "properties": {f"{number:0200}": {} for number in range(90)},
    "additionalProperties": True,
}


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a response in OpenAI's shape."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and error["code"]
    return error


def json_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields]}


REFUSED_EVERYWHERE = [
    ({"eft": {"weights": {"helpfull": 1}}}, "eft.weights.helpfull"),
    ({"eft": {"weights": {"helpful": "1"}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": True}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": 1e308}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": 2.5}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": -0.1}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": None}}}, "eft.weights.helpful"),
    ({"eft": {"weights": {"helpful": 1.5, "harmless": 1.5}}}, "eft.weights"),
    ({"eft": {"weights": [1, 2]}}, "eft.weights"),
    ({"eft": {"scale": 3}}, "eft.scale"),
    ({"eft": {"scle": 1}}, "eft.scle"),
    ({"eft": 1}, "eft"),
    ({"eft": {"scale": 1}, "vllm_xargs": {"eft.scale": 1}}, "eft"),
    ({"model": "demo/base", "eft": {"scale": 1}}, "eft"),
    ({"vllm_xargs": {"eft.helpful": 5}}, "vllm_xargs.eft.helpful"),
    ({"vllm_xargs": {"eft": [1, 0, 0, 0]}}, "vllm_xargs.eft"),
    ({"vllm_xargs": {"other": 1}}, "vllm_xargs.other"),
    ({"vllm_xargs": []}, "vllm_xargs"),
    ({"temprature": 1}, "temprature"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"best_of": 2}, "best_of"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    ({"priority": 1}, "priority"),
    ({"request_id": "a"}, "request_id"),
    ({"structured_outputs": {"regex": "(a+)+b"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "[a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a" * 3000}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "root ::="}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "root ::= Token(5)"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"grammar": "start: <[5]>"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice.1"),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"type": "integer", "multipleOf": 3}}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"type": "string", "format": "bogus"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": LONG_NAME}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": LONG_NAMES}}, "structured_outputs.json"),
    ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"regex": "a"}, "min_tokens": 3}, "min_tokens"),
    ({"structured_outputs": {"regex": "a"}, "bad_words": ["a"]}, "bad_words"),
    ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"n": 5}, "n"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 1.0}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": 1000}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": 2**40}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"seed": -1}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt_logprobs": 6}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"logprobs": 6}, "logprobs"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 300}, "stop"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": [1]}, "stop.0"),
    ({"stop_token_ids": [10**9]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids.0"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"logit_bias": {"5": 200}}, "logit_bias.5"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"bad_words": ["a"] * 65}, "bad_words"),
    ({"cache_salt": "a/b"}, "cache_salt"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"user": "u" * 300}, "user"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"response_format": "json"}, "response_format.type"),
    ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format.type"),
    ({"response_format": {"type": "json_object", "extra": 1}}, "response_format.extra"),
    (json_format({"$ref": "#"}), "response_format.json_schema.schema"),
    (json_format({"properties": {"a": {"$ref": "#"}}}), "response_format.json_schema.schema"),
    (
        json_format({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        "response_format.json_schema.schema",
    ),
    (json_format({"$ref": "http://host/a"}), "response_format.json_schema.schema"),
    (json_format({"type": "strin"}), None),
    ({"allowed_token_ids": [5], "response_format": {"type": "json_object"}}, "allowed_token_ids"),
    ({"bad_words": ["a"], "response_format": {"type": "json_object"}}, "bad_words"),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(("fields", "param"), REFUSED_EVERYWHERE)
async def test_what_cannot_be_served_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any], param: str | None
) -> None:
    body = ({"messages": HELLO} if "chat" in path else {"prompt": "Hi"}) | fields
    error = refusal(await client.post(path, json=body))
    if param is not None and not (param == "max_completion_tokens" and "chat" not in path):
        assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert engine.asked == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        (message(role="wizard", content="a"), "messages.0.role"),
        (message(role="tool", content="a"), "messages.0.role"),
        (message(content="a"), "messages.0.role"),
        (message(role="user"), "messages.0.content"),
        (message(role="user", content=None), "messages.0.content"),
        (message(role="user", content=[]), "messages.0.content"),
        (message(role="user", content=5), "messages.0.content"),
        (message(role="user", content="a", name="b"), "messages.0.name"),
        (message(role="assistant", content="a", tool_calls=[{}]), "messages.0.tool_calls"),
        (
            message(role="user", content=[{"type": "image_url", "image_url": {"url": "http://host/a.png"}}]),
            "messages.0.content.0",
        ),
        (message(role="user", content=[{"type": "text", "text": "a", "b": 1}]), "messages.0.content.0"),
        ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": HELLO, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a"),
        ({"messages": HELLO, "tools": [{}]}, "tools"),
        ({"messages": HELLO, "tool_choice": "auto"}, "tool_choice"),
        ({"messages": HELLO, "top_logprobs": 6, "logprobs": True}, "top_logprobs"),
        ({"messages": HELLO, "top_logprobs": 1}, "top_logprobs"),
        ({"messages": HELLO, "continue_final_message": True}, "continue_final_message"),
        ({"messages": HELLO, "prompt": "hi"}, "prompt"),
    ],
)
async def test_chats_that_cannot_be_served_are_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    assert refusal(await client.post("/v1/chat/completions", json=fields))["param"] == param
    assert engine.asked == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 4}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [999]}, None),
        ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
        ({"prompt": "a b c d e f g h i j k l m n o p q r s t u v w x y z" * 20}, None),
        ({"prompt": [5] * 513}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_that_cannot_be_served_are_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str | None, stream: bool
) -> None:
    error = refusal(await client.post("/v1/completions", json=fields | {"stream": stream}))
    assert param is None or error["param"] == param
    assert engine.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"prompt": "\xc3\x28"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "logit_bias": {"5": NaN}}',
        b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "stop": ["\\udfff"]}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    ],
)
async def test_bodies_that_are_not_sound_json_are_refused(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = refusal(await client.post("/v1/completions", content=body, headers=headers))
    assert error["code"] == "invalid_json"


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/tokenize", {"prompt": "a"})):
        error = refusal(await client.post(path, json=body | {"model": "gpt-4"}), 404)
        assert error["code"] == "model_not_found"
        assert "demo/base" in error["message"]


async def test_a_misspelt_field_is_answered_with_the_near_one(client: httpx.AsyncClient) -> None:
    error = refusal(await client.post("/v1/completions", json={"prompt": "a", "max_token": 3}))
    assert "'max_tokens'" in error["message"]


async def test_a_bound_is_named_in_the_message(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "eft": {"weights": {"helpful": 9}}}
    error = refusal(await client.post("/v1/completions", json=body))
    assert error["message"] == "eft.weights.helpful: 9 is out of bounds; allowed: 0 to 2"


async def test_paths_and_methods_that_do_not_exist_have_the_error_shape(client: httpx.AsyncClient) -> None:
    refusal(await client.get("/v1/nothing"), 404)
    refusal(await client.post("/v1/completions/", json={}), 404)
    response = await client.get("/v1/completions")
    refusal(response, 405)
    assert response.headers["allow"] == "POST"


async def test_a_token_id_outside_the_vocabulary_cannot_be_detokenized(client: httpx.AsyncClient) -> None:
    assert refusal(await client.post("/detokenize", json={"tokens": [5, 999]}))["param"] == "tokens.1"


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "a", "eft": {}}, {"messages": HELLO, "chat_template": "x"}]
)
async def test_tokenize_takes_only_its_own_fields(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    refusal(await client.post("/tokenize", json=fields))


async def test_a_request_that_fails_in_the_engine_is_named(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 2
    error = refusal(await client.post("/v1/completions", json={"prompt": "a"}), 500)
    assert "cmpl-" in error["message"]
    assert error["type"] == "server_error"


async def test_a_stream_that_fails_ends_with_an_error_event(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 3
    body = {"messages": HELLO, "stream": True, "max_tokens": 6}
    response = await client.post("/v1/chat/completions", json=body)
    *chunks, error, done = response.text.strip().split("\n\n")
    assert response.status_code == 200
    assert len(chunks) == 3
    assert "chatcmpl-" in error and '"type":"server_error"' in error
    assert done == "data: [DONE]"


async def test_a_stream_that_fails_at_once_has_the_status_of_its_error(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_at = 1
    body = {"prompt": "a", "stream": True}
    refusal(await client.post("/v1/completions", json=body), 500)


async def test_a_failure_does_not_touch_the_other_requests(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.pause_s = 0.02
    healthy = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 8}))
    await asyncio.sleep(0.05)
    engine.raises = RuntimeError("secret detail")
    broken = await client.post("/v1/completions", json={"prompt": "a"})
    assert "secret" not in refusal(broken, 500)["message"]
    assert (await healthy).status_code == 200


async def test_a_dead_engine_is_unavailable(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.raises = EngineDeadError()
    refusal(await client.post("/v1/completions", json={"prompt": "a"}), 503)
    engine.dead = True
    refusal(await client.post("/v1/completions", json={"prompt": "a", "stream": True}), 503)
