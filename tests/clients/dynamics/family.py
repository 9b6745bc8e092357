"""A family in a transport: every member has one distribution for all places, so that all numbers can be computed."""

import json
import math
from typing import Any

import httpx
import numpy as np

V = 11
END = V - 1


def tokens_of(text: str | list[int]) -> list[int]:
    """A token for each character."""
    return [ord(letter) % END for letter in text] if isinstance(text, str) else text


class FakeFamily(httpx.AsyncBaseTransport):
    """Answers as an EFT server of a family does; `requests` are the bodies that it got, by path.

    With a `refusal`, the error of an answer, it scores nothing.
    """

    refusal: dict[str, str] | None = None

    def __init__(
        self, members: dict[str, np.ndarray], *, name: str = "fake", reference: str = "base"
    ) -> None:
        self.name, self.members, self.reference = name, members, reference
        self.requests: dict[str, list[Any]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1")
        body = json.loads(await request.aread() or b"{}")
        self.requests.setdefault(path, []).append(body)
        if self.refusal is not None and path == "/eft/score":
            return httpx.Response(400, json={"error": self.refusal})
        answers = {"/models": self._models, "/eft/score": self._score}
        return httpx.Response(200, json=answers.get(path, self._chat)(body))

    def _models(self, _: Any) -> Any:
        experts = [name for name in self.members if name != self.reference]
        kinds = {name: "expert" if name in experts else "base" for name in self.members}
        members = {
            name: {"kind": kind, "reference": self.reference if kind == "expert" else None}
            for name, kind in kinds.items()
        }
        family = {
            "kind": "composite",
            "weights": dict.fromkeys(experts, 0.5),
            "members": members,
            "vocabulary": V,
        }
        alone = [{"id": f"{self.name}/{name}", "eft": {"kind": "member"}} for name in self.members]
        return {"object": "list", "data": [{"id": self.name, "eft": family}, *alone]}

    def _chat(self, body: Any) -> Any:
        said = f"{body['model']} says"
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= (
            {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
        )
        return {"id": "1", "model": body["model"], "choices": [choice]}

    def _score(self, body: Any) -> Any:
        member = body["model"].partition("/")[2]
        composite = self.members[member] if member else self._blend(body["eft"])
        names = body["members"] or []
        items = [self._item(index, item, composite, names) for index, item in enumerate(body["items"])]
        return {"object": "eft.score", "id": "1", "model": body["model"], "data": items}

    def _blend(self, eft: Any) -> np.ndarray:
        logs = np.log(self.members[self.reference])
        for name, weight in eft["weights"].items():
            logs = logs + weight * (np.log(self.members[name]) - np.log(self.members[self.reference]))
        return np.exp(logs) / np.exp(logs).sum()

    def _item(self, index: int, item: Any, composite: np.ndarray, names: list[str]) -> Any:
        ids = [*tokens_of(item["completion"]), *([END] if item["end"] else [])]
        return {
            "index": index,
            "token_ids": ids,
            "tokens": ["·"] * len(ids),
            "composite": _column(composite, ids),
            "members": {name: _column(self.members[name], ids) for name in names},
        }


def _column(p: np.ndarray, ids: list[int]) -> Any:
    n = len(ids)
    logprobs = [math.log(p[token]) for token in ids]
    rest = math.log(p.sum() - p.max())
    return {
        "logprobs": logprobs,
        "total": math.fsum(logprobs),
        "ranks": [1] * n,
        "top_logprobs": [math.log(p.max())] * n,
        "statistics": {
            "entropy": [-float((p * np.log(p)).sum())] * n,
            "sum_of_squares": [float((p * p).sum())] * n,
            "log_rest": [rest] * n,
        },
    }


def peaked(peak: float, at: int = 0, *, favoured: int | None = None, by: float = 1.0) -> np.ndarray:
    """A distribution with a probability at one token, and the rest even but for a factor on another."""
    p = np.full(V, 1.0)
    if favoured is not None:
        p[favoured] *= by
    p[at] = 0.0
    p *= (1 - peak) / p.sum()
    p[at] = peak
    return p
