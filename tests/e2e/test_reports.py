"""Reports of the running server, against the scores of the same tokens."""

import json
import math
from typing import Any

import httpx
import pytest

from .conftest import Server

HELLO: Any = [{"role": "user", "content": "Hello world, how does the fox jump?"}]
BEHAVIOUR: dict[str, Any] = {"weights": {"helpful": 0.9, "harmless": 0.6}, "scale": 1.25, "report": True}
TOLERANCE = 2e-3
IDS = 320
LENGTH = {
    "chat/completions": {"messages": HELLO, "max_tokens": 12, "ignore_eos": True},
    "completions": {"prompt": "Hello world", "max_tokens": 12, "ignore_eos": True},
    "responses": {"input": "Hello world, how does the fox jump?", "max_output_tokens": 12},
}


def post(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_report_agrees_with_the_scores_of_every_token(server: Server) -> None:
    """Those of all ids, under the composite and under the base, are the two distributions at a place."""
    behaviour = {key: value for key, value in BEHAVIOUR.items() if key != "report"}
    prompt = list(range(10, 30))
    found = []
    for ids in (range(160), range(160, IDS)):
        items = [{"prompt": prompt, "completion": [token]} for token in ids]
        found += post(server, "eft/score", items=items, eft=behaviour, members=["base"])["data"]
    own = [item["composite"]["logprobs"][0] for item in found]
    base = [item["members"]["base"]["logprobs"][0] for item in found]
    possible = [token for token in range(IDS) if own[token] is not None]
    kl = sum(math.exp(own[token]) * (own[token] - base[token]) for token in possible)
    changed = max(possible, key=lambda token: own[token]) != max(range(IDS), key=lambda token: base[token])
    assert len(possible) < IDS and kl > 0.01
    report = post(server, "completions", prompt=prompt, max_tokens=1, eft=BEHAVIOUR)["eft"]["report"]
    assert report == {"tokens": 1, "changed": float(changed), "kl": pytest.approx(kl, abs=1e-3)}


@pytest.mark.parametrize("path", LENGTH)
def test_streamed_or_not_it_is_the_same_report(server: Server, path: str) -> None:
    body = LENGTH[path] | {"temperature": 0, "eft": BEHAVIOUR}
    whole = post(server, path, **body)["eft"]
    told = []
    with httpx.stream("POST", f"{server.url}/v1/{path}", json=body | {"stream": True}, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                told += [event.get("eft") or event.get("response", {}).get("eft")]
    told = [eft for eft in told if eft]
    assert "report" not in told[0] and told[-1]["report"]["tokens"] == whole["report"]["tokens"]
    assert told[-1]["report"]["changed"] == whole["report"]["changed"]
    assert told[-1]["report"]["kl"] == pytest.approx(whole["report"]["kl"], abs=TOLERANCE)


def test_a_stop_string_and_several_samples_are_counted_as_usage_counts_them(server: Server) -> None:
    body = {"prompt": ["Hello", "world"], "n": 3, "seed": 5, "max_tokens": 9, "ignore_eos": True}
    for more in ({}, {"stop": ["e"]}):
        answer = post(server, "completions", **body, **more, eft=BEHAVIOUR)
        assert answer["eft"]["report"]["tokens"] == answer["usage"]["completion_tokens"]


def test_a_plain_expert_is_compared_with_the_base_and_the_base_with_itself(server: Server) -> None:
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "ignore_eos": True, "eft": {"report": True}}
    assert post(server, "chat/completions", model="tiny/helpful", **body)["eft"]["report"]["kl"] > 0.01
    base = post(server, "chat/completions", model="tiny/base", **body)["eft"]["report"]
    assert base == {"tokens": 8, "changed": 0.0, "kl": 0.0}


def test_metrics_have_what_was_reported(server: Server) -> None:
    post(server, "completions", prompt="Hello", max_tokens=2, eft=BEHAVIOUR)
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if line.startswith("eft:report_"))
    for name in ("changed", "kl"):
        assert float(counts[f'eft:report_{name}_count{{model="tiny"}}']) >= 1
