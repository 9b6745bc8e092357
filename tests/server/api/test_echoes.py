"""Completions that repeat their prompt."""

from typing import Any

import httpx
import pytest

from .fake_engine import FakeEngine
from .test_app_routes import events

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("prompt", ["Hi", [41, 74]])
@pytest.mark.parametrize("most", [0, 3])
async def test_echo_and_token_ids_come_together(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any, most: int
) -> None:
    body = {"prompt": [prompt, prompt], "n": 2, "echo": True, "return_token_ids": True, "max_tokens": most}
    ids = engine.renderer.get_tokenizer().encode("Hi") if prompt == "Hi" else prompt
    text = engine.renderer.get_tokenizer().decode(ids)
    answer = (await client.post("/v1/completions", json=body | {"logprobs": 1})).json()
    stream = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = events(await client.post("/v1/completions", json=body | stream))
    for choice in answer["choices"]:
        assert choice["text"].startswith(text)
        assert (choice["text"] == text) is (most == 0)
        assert choice["text"] == "".join(choice["logprobs"]["tokens"])
        assert choice["prompt_token_ids"] == ids
        assert len(choice["token_ids"]) == most
        assert choice["finish_reason"] == "length"
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [token for part in own for token in part["token_ids"]] == choice["token_ids"]
        assert own[0]["prompt_token_ids"] == ids
        assert own[-1]["finish_reason"] == "length"
    usage = {"prompt_tokens": 2 * len(ids), "completion_tokens": 4 * most}
    for found in (answer["usage"], chunks[-1]["usage"]):
        assert found.items() >= (usage | {"total_tokens": sum(usage.values())}).items()
    assert chunks[-2]["usage"]["completion_tokens"] == most


async def test_an_echo_alone_counts_no_completion_tokens(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "echo": True, "max_tokens": 0}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "Hi"
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]
