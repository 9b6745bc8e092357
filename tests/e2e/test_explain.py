"""Explanations of the running server against what it says in other ways: scores, log-probabilities, generations."""

import math
from typing import Any

import httpx
import pytest

from eft_server.api.scoring.explanations import ExplainAnswer

from .conftest import Server
from .random_family import POISON

HELLO: Any = [{"role": "user", "content": "Hello world, how does the fox jump?"}]
WEIGHTS: dict[str, Any] = {"weights": {"helpful": 0.7, "harmless": 0.5}, "scale": 1.25}
MEMBERS = ("base", "small", "helpful", "harmless", "broken")
PROMPT, COMPLETION = list(range(10, 50)), list(range(60, 90, 3))
GIVEN: dict[str, Any] = {"prompt": PROMPT, "completion": COMPLETION}
TOLERANCE = 1e-3


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def explain(server: Server, **body: Any) -> dict[str, Any]:
    answer = post(server, "eft/explain", **body)
    assert answer.status_code == 200, answer.text
    ExplainAnswer.model_validate_json(answer.content, extra="forbid")
    found: dict[str, Any] = answer.json()
    return found


def column(explained: dict[str, Any], *path: str) -> list[Any]:
    """A value of every token."""
    values = explained["tokens"]
    for key in path:
        values = [value[key] for value in values]
    return values


def test_every_number_that_scores_have_is_theirs(server: Server) -> None:
    explained = explain(server, **GIVEN, eft=WEIGHTS)
    [scored] = post(server, "eft/score", items=[GIVEN], eft=WEIGHTS).json()["data"]
    assert column(explained, "logprob") == pytest.approx(scored["composite"]["logprobs"], abs=TOLERANCE)
    assert column(explained, "rank") == scored["composite"]["ranks"]
    assert column(explained, "id") == explained["completion"]["token_ids"] == COMPLETION
    assert column(explained, "text") == scored["tokens"]
    assert column(explained, "bytes") == scored["bytes"]
    assert explained["summary"]["logprob"] == pytest.approx(scored["composite"]["total"], abs=TOLERANCE)
    for name in MEMBERS:
        own = scored["members"][name]
        assert column(explained, "members", name, "logprob") == pytest.approx(own["logprobs"], abs=TOLERANCE)
        assert column(explained, "members", name, "rank") == own["ranks"]
        tops = column(explained, "members", name, "top", "logprob")
        assert tops == pytest.approx(own["top_logprobs"], abs=TOLERANCE)
    for name, reward in scored["rewards"].items():
        assert column(explained, "rewards", name) == pytest.approx(reward["logprobs"], abs=TOLERANCE)
        assert explained["summary"]["rewards"][name] == pytest.approx(reward["total"], abs=10 * TOLERANCE)
    assert explained["usage"] == {"prompt_tokens": 50, "completion_tokens": 0, "total_tokens": 50}


def test_the_likely_tokens_are_those_of_a_completions_log_probabilities(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 5, "eft": WEIGHTS}
    wanted = {"return_tokens_as_token_ids": True, "return_token_ids": True, "ignore_eos": True}
    [choice] = post(server, "completions", **body, **wanted).json()["choices"]
    explained = explain(server, prompt=PROMPT, completion=choice["token_ids"], eft=WEIGHTS, top_logprobs=5)
    for token, likely in zip(explained["tokens"], choice["logprobs"]["top_logprobs"], strict=True):
        assert [f"token_id:{item['id']}" for item in token["top"]] == list(likely)
        assert [item["logprob"] for item in token["top"]] == pytest.approx(
            list(likely.values()), abs=TOLERANCE
        )
        assert token["rank"] == 1 and token["id"] == token["top"][0]["id"]
    for name in MEMBERS[:4]:
        prompt = [*PROMPT, *choice["token_ids"][:3]]
        alone = {"model": f"tiny/{name}", "prompt": prompt, "max_tokens": 1, "temperature": 0, **wanted}
        [said] = post(server, "completions", **alone).json()["choices"][0]["token_ids"]
        assert explained["tokens"][3]["members"][name]["top"]["id"] == said


SETTINGS: list[dict[str, Any]] = [
    {"eft": WEIGHTS},
    {"eft": {"weights": {"helpful": 1.0}, "amplify": 1.6}},
    {"eft": {"weights": {"helpful": 0.5, "harmless": 0.5}, "filter": {"kind": "expert", "top_p": 0.5}}},
    {"eft": {"weights": {"helpful": 1}, "amplify": 1.5, "filter": {"kind": "expert", "top_p": 0.3}}},
    {"eft": {"weights": {"helpful": 1}, "filter": {"kind": "base", "top_p": 0.6}}},
    {"eft": {"weights": {}}},
    {"model": "tiny/helpful"},
    {"model": "tiny/base"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_each_contributes_sums_to_the_logit_up_to_the_rows_constant(
    server: Server, settings: dict[str, Any]
) -> None:
    explained = explain(server, **GIVEN, **settings, top_logprobs=5)
    for token in explained["tokens"]:
        for item in (token, *token["top"]):
            total = _sum(item["contributions"])
            if item["logprob"] is None:
                assert total is None
            else:
                assert total == pytest.approx(item["logprob"] + token["constant"], abs=1e-4)
    parts = explained["tokens"][0]["contributions"]
    assert ("members" in parts) == ("model" in settings)
    if settings.get("eft", {}).get("filter"):
        found = [item["contributions"]["filter"] for t in explained["tokens"] for item in (t, *t["top"])]
        # In the nucleus a filter changes nothing; outside there is something to take away.
        assert any(value is not None and abs(value) < 1e-4 for value in found)
        assert any(value is None or abs(value) > 1e-2 for value in found)


def _sum(parts: dict[str, Any]) -> float | None:
    values = [*parts.get("experts", {}).values(), *parts.get("members", {}).values()]
    values += [parts[name] for name in ("base", "amplify", "filter") if name in parts]
    return None if None in values else math.fsum(values)


def test_without_an_expert_it_is_as_with_its_weight_at_zero(server: Server) -> None:
    explained = explain(server, **GIVEN, eft=WEIGHTS)
    for name, left in (("helpful", {"harmless": 0.5}), ("harmless", {"helpful": 0.7})):
        other = explain(server, **GIVEN, eft={"weights": left, "scale": 1.25}, top_logprobs=1)
        without = column(explained, "without", name)
        assert [item["id"] for item in without] == [token["top"][0]["id"] for token in other["tokens"]]
        expected = [token["top"][0]["logprob"] for token in other["tokens"]]
        assert [item["logprob"] for item in without] == pytest.approx(expected, abs=TOLERANCE)
        assert [item["token_logprob"] for item in without] == pytest.approx(
            column(other, "logprob"), abs=TOLERANCE
        )
        changed = [
            a["top"][0]["id"] != b["top"][0]["id"]
            for a, b in zip(explained["tokens"], other["tokens"], strict=True)
        ]
        assert [item["changed"] for item in without] == changed
        assert any(changed)
    assert set(explained["tokens"][0]["without"]) == {"helpful", "harmless"}


def test_kl_and_the_share_of_changed_tokens_are_those_of_the_distributions(server: Server) -> None:
    """All probabilities of a family of 300 tokens, from log-probabilities of chosen ids, a hundred at a time."""
    explained = explain(server, **GIVEN, eft=WEIGHTS)
    base = explain(server, **GIVEN, model="tiny/base")
    assert explained["summary"]["kl"] == pytest.approx(sum(column(explained, "kl")) / 10, abs=1e-5)
    assert column(base, "kl") == [0.0] * 10
    assert base["summary"]["changed"] == 0
    changed = [
        token["top"][0]["id"] != token["members"]["base"]["top"]["id"] for token in explained["tokens"]
    ]
    assert explained["summary"]["changed"] == pytest.approx(sum(changed) / 10)
    own, other = (
        _distribution(server, model, PROMPT) for model in ({"eft": WEIGHTS}, {"model": "tiny/base"})
    )
    kl = sum(math.exp(own[i]) * (own[i] - other[i]) for i in own)
    assert explained["tokens"][0]["kl"] == pytest.approx(kl, abs=TOLERANCE)
    entropy = -sum(math.exp(value) * value for value in own.values())
    assert explained["tokens"][0]["entropy"] == pytest.approx(entropy, abs=TOLERANCE)


def _distribution(server: Server, model: dict[str, Any], prompt: list[int]) -> dict[int, float]:
    found: dict[int, float] = {}
    for start in range(0, 304, 16):
        ids = list(range(start, min(304, start + 16)))
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": 0, "logprob_token_ids": ids, "temperature": 0}
        answer = post(server, "completions", **body, **model, return_tokens_as_token_ids=True)
        [likely] = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
        named = {int(name.removeprefix("token_id:")): value for name, value in likely.items()}
        found |= {token: named[token] for token in ids if named.get(token, -math.inf) > -1000}
    return found


def test_a_completion_is_generated_as_a_chat_would_and_then_explained(server: Server) -> None:
    settings: dict[str, Any] = {
        "messages": HELLO,
        "eft": WEIGHTS,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 11,
    }
    explained = explain(server, **settings, max_tokens=14)
    chat = post(server, "chat/completions", **settings, max_tokens=14, return_token_ids=True).json()
    choice = chat["choices"][0]
    assert explained["completion"]["token_ids"] == choice["token_ids"]
    assert explained["completion"]["text"] == choice["message"]["content"]
    assert explained["completion"]["finish_reason"] == choice["finish_reason"] == "length"
    assert explained["prompt_token_ids"] == chat["prompt_token_ids"]
    assert explained["usage"]["completion_tokens"] == 14
    assert explained["sampling"] == {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
    # What was sampled could be sampled, and among fewer tokens it is the likelier.
    for token in explained["tokens"]:
        assert token["sampled_logprob"] is not None
        kept = [item["sampled_logprob"] for item in token["top"] if item["sampled_logprob"] is not None]
        assert kept == sorted(kept, reverse=True)
    assert any(item["sampled_logprob"] is None for token in explained["tokens"] for item in token["top"])


def test_prompts_by_member_are_read_while_generating_and_while_explaining(server: Server) -> None:
    prompts = {"helpful": list(range(100, 130)), "small": [7, 8, 9]}
    body = {"prompt": PROMPT, "temperature": 0, "eft": WEIGHTS}
    explained = explain(server, **body, prompts=prompts, max_tokens=8)
    answer = post(
        server,
        "completions",
        **body | {"eft": WEIGHTS | {"prompts": prompts}},
        max_tokens=8,
        return_token_ids=True,
    )
    assert explained["completion"]["token_ids"] == answer.json()["choices"][0]["token_ids"]
    assert column(explained, "rank") == [1] * len(explained["tokens"])
    assert {name: explained["prompts"][name] for name in prompts} == prompts
    assert explained["prompts"]["base"] == PROMPT
    without = explain(server, **body, completion=explained["completion"]["token_ids"])
    assert without["prompts"] is None
    assert column(without, "logprob") != pytest.approx(column(explained, "logprob"), abs=0.1)


def test_a_span_is_that_part_of_the_whole(server: Server) -> None:
    prompts = {"helpful": list(range(100, 130))}
    whole = explain(server, **GIVEN, prompts=prompts, eft=WEIGHTS)
    part = explain(server, **GIVEN, prompts=prompts, eft=WEIGHTS, span=[4, 9])
    assert part["span"] == [4, 9]
    assert part["completion"] == whole["completion"]
    assert part["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [token["index"] for token in part["tokens"]] == [4, 5, 6, 7, 8]
    assert column(part, "logprob") == pytest.approx(column(whole, "logprob")[4:9], abs=TOLERANCE)
    assert column(part, "kl") == pytest.approx(column(whole, "kl")[4:9], abs=TOLERANCE)


def test_parts_of_characters_and_ends_of_turns_are_what_they_are(server: Server) -> None:
    explained = explain(server, messages=HELLO, completion="né 🦊!", end=True)
    assert b"".join(bytes(token["bytes"]) for token in explained["tokens"][:-1]).decode() == "né 🦊!"
    assert "\ufffd" in column(explained, "text")
    assert column(explained, "special") == [False] * (len(explained["tokens"]) - 1) + [True]
    assert explained["completion"]["text"] == "né 🦊!"


def test_what_not_all_members_share_is_null_and_what_is_not_finite_fails_alone(server: Server) -> None:
    explained = explain(server, prompt="Hello", completion=[310, 20], eft=WEIGHTS)
    first = explained["tokens"][0]
    assert first["logprob"] is None and first["text"] == "" and first["constant"] is not None
    assert first["members"]["base"]["logprob"] is not None
    assert explained["summary"]["logprob"] is None
    broken = post(server, "eft/explain", prompt=[5, POISON, 6], completion=[7, 8], eft=WEIGHTS)
    assert broken.status_code == 500
    assert "explain-" in broken.json()["error"]["message"]
    assert explain(server, prompt="Hello", completion=[20])
