"""The API beside the page: what a test asks the server itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

__all__ = ["complete", "explain", "post", "retokenized"]


def post(url: str, key: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request that has to be right."""
    answer = httpx.post(f"{url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def complete(url: str, key: str, body: Mapping[str, Any]) -> list[int]:
    """The ids that a completion has, by the request that the page sent, without a stream."""
    whole = {name: value for name, value in body.items() if name != "stream"} | {"stream": False}
    ids: list[int] = post(url, key, "/v1/completions", whole)["choices"][0]["token_ids"]
    return ids


def explain(url: str, key: str, asked: Mapping[str, Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    """What the API says of each token of an answer to a request of the page."""
    names = ("model", "eft", "prompt", "temperature", "top_p")
    body = {name: asked[name] for name in names if name in asked} | {
        "completion": list(ids),
        "top_logprobs": 20,
    }
    tokens: list[dict[str, Any]] = post(url, key, "/v1/eft/explain", body)["tokens"]
    assert [token["id"] for token in tokens] == list(ids)
    return tokens


def retokenized(url: str, key: str, text: str) -> list[int]:
    """The ids of a text as the tokenizer splits it."""
    body = {"model": "demo", "prompt": text, "add_special_tokens": False}
    ids: list[int] = post(url, key, "/tokenize", body)["tokens"]
    return ids
