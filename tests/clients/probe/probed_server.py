"""A server in a transport whose members' activations are noise, and at one layer of the expert a text's quality."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from eft_client import EftClient

LAYERS, HIDDEN, TELLING = 3, 8, 1
MEMBERS = ("small", "good")


def number_of(*parts: object) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12], 16)


def quality(prompt: str, completion: str) -> float:
    """Good or bad, 1 or −1: of no word by itself."""
    return 1.0 if number_of(prompt, completion) % 2 else -1.0


def answers(prompt: str, count: int = 4) -> tuple[str, str]:
    """A good and a bad answer, of the same few words."""
    rng = np.random.default_rng(number_of("answers", prompt))
    found: dict[float, str] = {}
    while len(found) < 2:
        text = " ".join(rng.choice(["red", "blue", "green", "black", "white"], size=count))
        found.setdefault(quality(prompt, text), text)
    return found[1.0], found[-1.0]


def pair_lines(count: int) -> list[dict[str, Any]]:
    """Lines of pairs, each of another prompt."""
    lines = []
    for index in range(count):
        good, bad = answers(f"q{index}")
        lines.append({"prompt": f"q{index}", "chosen": good, "rejected": bad})
    return lines


class ProbedServer(httpx.AsyncBaseTransport):
    """The list of models, and scores with activations.

    Attributes:
        scored: the bodies that it was asked to score.
        most_bytes: how many bytes of activations a request may have.
        allowed: whether it gives activations at all.
        sharpness: of the expert, whose rewards grow with it.
        too_long: a prompt that it does not take.
        turned: whether rewards are others, with the same sum.
        ends: whether the family has a token that ends a turn.
    """

    def __init__(
        self,
        *,
        most_bytes: int = 1 << 24,
        allowed: bool = True,
        sharpness: float = 1.0,
        turned: bool = False,
        too_long: str | None = None,
        ends: bool = True,
    ) -> None:
        self.scored: list[Mapping[str, Any]] = []
        self.most_bytes = most_bytes
        self.allowed = allowed
        self.sharpness = sharpness
        self.turned = turned
        self.too_long = too_long
        self.ends = ends
        self.breaks_after: int | None = None

    @contextmanager
    def opened(
        self,
        family: object,
        url: str | None,
        overrides: Sequence[str] = (),
        *,
        model: str | None = None,
        api_key_env: str | None = None,
    ) -> Iterator[EftClient]:
        self.overrides = list(overrides)
        with EftClient("http://x/v1", "key", model=model, transport=self, retries=0) as client:
            yield client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        if request.url.path.endswith("/models"):
            members = {"base": {"kind": "base"}, "small": {"kind": "reference"}}
            members["good"] = {"kind": "expert", "reference": "small"}
            eft = {"kind": "composite", "weights": {"good": 1.0}, "members": members}
            return httpx.Response(200, json={"object": "list", "data": [{"id": "fam", "eft": eft}]})
        body = json.loads(request.content)
        self.scored.append(body)
        if self.breaks_after is not None and len(self.scored) > self.breaks_after:
            return self._refusal("out of order", 500)
        return self._score(body)

    def _score(self, body: Mapping[str, Any]) -> httpx.Response:
        wanted = body.get("activations")
        if wanted and not self.allowed:
            return self._refusal(
                "this server does not return them; server.activations: true in its family file allows it", 400
            )
        for index, item in enumerate(body["items"]):
            if item["prompt"] == self.too_long:
                return self._refusal(f"items.{index}.prompt: too long", 400)
        if not self.ends and any(item["end"] for item in body["items"]):
            return self._refusal("items[0].end: the family has no end-of-turn token; leave it out", 400)
        data = [self._item(index, item, body) for index, item in enumerate(body["items"])]
        size = sum(
            4 * int(np.prod(array["shape"]))
            for item in data
            for layers in item["activations"].values()
            for array in layers.values()
        )
        if size > self.most_bytes:
            of = f"(items: {len(data)})"
            message = (
                f"activations: {size} bytes of states {of} are too many; allowed: up to {self.most_bytes}"
            )
            return self._refusal(message, 400)
        answer = {"object": "eft.score", "id": "1", "created": 1, "model": "fam", "eft": {}, "data": data}
        return httpx.Response(200, json=answer)

    def _item(self, index: int, item: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        prompt, words = item["prompt"], item["completion"].split()
        tokens = [number_of(word) % 1000 for word in words] + ([0] if item["end"] else [])
        good = quality(prompt, item["completion"])
        rewards = [self.sharpness * good * (1 + place / 10) for place in range(len(tokens))]
        if self.turned:
            rewards[1], rewards[2] = rewards[2], rewards[1]
            rewards[0], rewards[-1] = 2 * rewards[0], rewards[-1] - rewards[0]
        weight = body.get("eft", {}).get("weights", {}).get("good", 0.0)
        return {
            "object": "eft.score.item",
            "index": index,
            "token_ids": tokens,
            "tokens": ["x"] * len(tokens),
            "composite": _column([weight * reward - 2 for reward in rewards]),
            "members": {"base": _column([-2.0] * len(tokens))},
            "rewards": {"good": {"logprobs": rewards, "total": sum(rewards)}},
            "activations": self._activations(prompt, item["completion"], len(tokens), body),
        }

    def _activations(self, prompt: str, text: str, count: int, body: Mapping[str, Any]) -> dict[str, Any]:
        wanted = body.get("activations")
        if wanted is None:
            return {}
        layers = range(LAYERS) if wanted["layers"] == "all" else wanted["layers"]
        return {
            member: {
                str(layer): _stated(states(member, layer, prompt, text, count), wanted["pool"])
                for layer in layers
            }
            for member in wanted["members"]
        }

    def _refusal(self, message: str, status: int) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": message, "type": "x", "code": status}})


def states(member: str, layer: int, prompt: str, text: str, count: int) -> np.ndarray:
    """A member's activations for each token: [tokens, hidden]."""
    found = np.random.default_rng(number_of(member, layer, prompt, text)).normal(size=(count, HIDDEN))
    if (member, layer) == ("good", TELLING):
        found[:, 2] += 2 * quality(prompt, text)
    return found.astype(np.float32)


def _stated(states_CH: np.ndarray, pool: str) -> dict[str, Any]:
    pooled = {"last": states_CH[-1], "mean": states_CH.mean(axis=0), "none": states_CH}[pool]
    data = base64.b64encode(pooled.astype("<f4").tobytes()).decode()
    return {"shape": list(pooled.shape), "data": data}


def _column(logprobs: list[float]) -> dict[str, Any]:
    ones = [1] * len(logprobs)
    return {"logprobs": logprobs, "total": sum(logprobs), "ranks": ones, "top_logprobs": logprobs}
