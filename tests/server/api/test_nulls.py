"""Which nulls answers hold: those that OpenAI defines, and no others."""

import json
import re
from typing import Any

import httpx
import pytest

from eft_server.api.serving.events import event_of, payload_of
from eft_server.api.serving.nulls import event_without_foreign_nulls, without_foreign_nulls

from .fake_engine import TEXT, FakeEngine
from .test_app_routes import ASKED

pytestmark = pytest.mark.asyncio


def nulls_in(node: Any) -> set[str]:
    if isinstance(node, list):
        return {name for inner in node for name in nulls_in(inner)}
    if not isinstance(node, dict):
        return set()
    own = {name for name, value in node.items() if value is None}
    return own.union(*(nulls_in(value) for name, value in node.items() if name != "eft"))


FOREIGN = {
    *("routed_experts", "kv_transfer_params", "ec_transfer_params", "prompt_logprobs", "prompt_token_ids"),
    *("token_ids", "stop_reason", "metrics", "prompt_text", "reasoning", "input_messages", "output_messages"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/v1/chat/completions", "refusal"),
        ("/v1/completions", "logprobs"),
        ("/v1/responses", "incomplete_details"),
    ],
)
async def test_nulls_are_openais_alone(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, kept: str, stream: bool
) -> None:
    engine.script = TEXT
    response = await client.post(path, json=ASKED[path] | {"stream": stream})
    found = [json.loads(data) for data in re.findall(r"^data: (\{.*)$", response.text, re.MULTILINE)]
    nulls = nulls_in(found or response.json())
    foreign = FOREIGN - {"reasoning"} if path == "/v1/responses" else FOREIGN
    assert nulls.isdisjoint(foreign)
    assert (kept if not stream or path == "/v1/responses" else "finish_reason") in nulls


CHAT = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": None}]}
TRICKY = ',"token_ids":null} {"token_ids":null,'


@pytest.mark.parametrize(
    "payload",
    [
        CHAT | {"token_ids": None, "usage": None, "metrics": None},
        {"token_ids": None, "metrics": None} | CHAT,
        CHAT
        | {"choices": [{"index": 0, "delta": {"content": TRICKY}, "token_ids": None, "stop_reason": None}]},
        CHAT | {"eft": {"model": "a", "metrics": None}, "metrics": None},
        {"object": "text_completion", "choices": [{"text": TRICKY, "logprobs": None, "stop_reason": None}]},
        {
            "object": "text_completion",
            "choices": [{"logprobs": {"top_logprobs": [{"a": 0.5, "metrics": None}], "metrics": None}}],
        },
        {"object": "another", "metrics": 1, "token_ids": None},
    ],
)
async def test_an_events_text_loses_what_its_object_does(payload: dict[str, Any]) -> None:
    pruned = payload_of(event_without_foreign_nulls(event_of(payload)))
    assert pruned == without_foreign_nulls(payload)


async def test_nulls_that_a_request_brought_come_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = "{}"
    schema = {"type": "object", "properties": {"stop_reason": {"type": "null", "default": None}}}
    form = {"type": "json_schema", "name": "a", "schema": schema}
    answer = (await client.post("/v1/responses", json={"input": "Hi", "text": {"format": form}})).json()
    assert answer["text"]["format"]["schema"] == schema
    assert answer["eft"]["filter"] is None


async def test_tokens_are_listed_without_nulls(client: httpx.AsyncClient) -> None:
    assert nulls_in((await client.post("/tokenize", json={"prompt": "Hi"})).json()) == set()
