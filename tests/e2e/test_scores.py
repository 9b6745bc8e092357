"""Scores of the running server against what it says in other ways: generations, and prompts' log-probabilities."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from eft_client import EftClient

from .conftest import Server, start_server, stop_server
from .random_family import POISON

HELLO: Any = [{"role": "user", "content": "Hello world, how does the fox jump?"}]
WEIGHTS: dict[str, Any] = {"weights": {"helpful": 0.7, "harmless": 0.5}, "scale": 1.25}
MEMBERS = ("base", "small", "helpful", "harmless")
TOLERANCE = 2e-3


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def test_what_was_generated_scores_what_it_was_generated_with(server: Server) -> None:
    asked: dict[str, Any] = {"messages": HELLO, "eft": WEIGHTS, "temperature": 0, "max_tokens": 12}
    wanted = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True, "ignore_eos": True}
    choice = post(server, "chat/completions", **asked, **wanted).json()["choices"][0]
    item = {"messages": HELLO, "completion": choice["token_ids"]}
    answer = post(server, "eft/score", items=[item], eft=WEIGHTS, members=False).json()
    found = answer["data"][0]["composite"]
    said = [token["logprob"] for token in choice["logprobs"]["content"]]
    assert found["logprobs"] == pytest.approx(said, abs=TOLERANCE)
    assert found["top_logprobs"] == pytest.approx(said, abs=TOLERANCE)
    assert found["ranks"] == [1] * 12
    assert found["total"] == pytest.approx(sum(said), abs=12 * TOLERANCE)
    assert answer["eft"]["scale"] == 1.25


def test_every_member_scores_as_it_does_alone(server: Server) -> None:
    prompt, completion = list(range(10, 50)), list(range(60, 90, 3))
    body = {"items": [{"prompt": prompt, "completion": completion}], "eft": WEIGHTS, "members": list(MEMBERS)}
    answer = post(server, "eft/score", **body).json()["data"][0]
    alone = {
        name: _prompt_logprobs(server, f"tiny/{name}", [*prompt, *completion])[-len(completion) :]
        for name in MEMBERS
    }
    for name, values in alone.items():
        assert answer["members"][name]["logprobs"] == pytest.approx(values, abs=TOLERANCE)
    for name, reward in answer["rewards"].items():
        gains = [own - other for own, other in zip(alone[name], alone["small"], strict=True)]
        assert reward["logprobs"] == pytest.approx(gains, abs=2 * TOLERANCE)
    assert list(answer["rewards"]) == ["helpful", "harmless"]
    assert len({tuple(column["logprobs"]) for column in answer["members"].values()}) == len(MEMBERS)


def _prompt_logprobs(server: Server, model: str, ids: list[int]) -> list[float]:
    body = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
    places = post(server, "completions", **body).json()["choices"][0]["prompt_logprobs"]
    return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], places[1:], strict=True)]


def test_a_text_and_its_tokens_score_the_same_with_the_end_of_a_turn(server: Server) -> None:
    text = {"messages": HELLO, "completion": "The lazy dog", "end": True}
    first = post(server, "eft/score", items=[text], members=["base"]).json()["data"][0]
    ids = {"messages": HELLO, "completion": first["token_ids"]}
    second = post(server, "eft/score", items=[ids], members=["base"]).json()["data"][0]
    assert first["token_ids"][-1] == 0
    assert "".join(first["tokens"][:-1]) == "The lazy dog"
    for part in ("composite", "members"):
        assert str(first[part]) == str(second[part]) or _near(first[part], second[part])


def _near(one: Any, other: Any) -> bool:
    """Which requests meet in a step is a matter of timing, and of the last bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key]) for key in one)
    return bool(one == pytest.approx(other, abs=TOLERANCE))


def test_rows_that_are_not_finite_fail_their_request_alone(server: Server) -> None:
    broken = {"prompt": [5, POISON, 6], "completion": [7, 8]}
    failed = post(server, "eft/score", items=[broken], eft={"weights": {"broken": 1}}, members=False)
    assert failed.status_code == 500
    assert re.search(r"score-\w+-0 failed", failed.json()["error"]["message"])
    # The composite does not count that member, but its own column would be wrong.
    assert post(server, "eft/score", items=[broken], eft=WEIGHTS, members=["broken"]).status_code == 500
    assert post(server, "eft/score", items=[broken], eft=WEIGHTS, members=["helpful"]).status_code == 200
    assert post(server, "eft/score", items=[{"prompt": "x", "completion": "y"}]).status_code == 200


def test_what_not_all_members_share_is_null_and_no_danger(server: Server) -> None:
    item = {"prompt": "Hello", "completion": [310, 20, 319]}
    [found] = post(server, "eft/score", items=[item], eft=WEIGHTS, members=["base"]).json()["data"]
    assert [value is None for value in found["composite"]["logprobs"]] == [True, False, True]
    assert None not in found["members"]["base"]["logprobs"]
    refused = post(server, "eft/score", items=[{"prompt": "Hello", "completion": [320]}])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "items.0.completion"


def test_each_item_counts_as_a_request_of_its_model(server: Server) -> None:
    def counted() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        found = re.search(r'^eft:requests_total\{model="tiny/harmless"\} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = counted()
    items = [{"prompt": "Hello", "completion": " world"}] * 3
    assert post(server, "eft/score", items=items, model="tiny/harmless").status_code == 200
    assert counted() == before + 3


@pytest.fixture(scope="module")
def opened(family_file: Path) -> Iterator[Server]:
    """A server that returns activations."""
    server = start_server(str(family_file), "--set", "server.activations=true")
    yield server
    assert stop_server(server) == 0


def test_states_and_statistics_come_with_scores(opened: Server, family_file: Path) -> None:
    """Through the client: those of transformers, of a member beside the others."""
    items = [{"messages": HELLO, "completion": "The lazy dog"}, {"prompt": [5, 6], "completion": [7]}]
    with EftClient(opened.url) as client:
        scores = client.score(
            items, members=["base"], statistics=True, activations={"layers": [-1], "pool": "mean"}
        )
        read = client.score(items, members=["base"])
    for item, plain in zip(scores, read, strict=True):
        assert item.composite.logprobs == pytest.approx(plain.composite.logprobs, abs=TOLERANCE)
        assert min(item.composite.statistics.entropy) > 0
        assert list(item.activations) == ["base", "small", "helpful", "harmless", "broken"]
    model = AutoModelForCausalLM.from_pretrained(family_file.parent / "helpful", dtype=torch.float32)
    [(layer, states)] = scores[1].activations["helpful"].items()
    assert layer == model.config.num_hidden_layers - 1
    seen: list[torch.Tensor] = []
    model.model.layers[layer].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]))
    assert list(states.values) == pytest.approx(seen[0][0, -1].tolist(), abs=TOLERANCE)


def test_the_operator_has_to_allow_states(server: Server) -> None:
    items = [{"prompt": [5, 6], "completion": [7]}]
    refused = post(server, "eft/score", items=items, activations={"layers": [0]})
    assert refused.status_code == 400
    assert "server.activations" in refused.json()["error"]["message"]
