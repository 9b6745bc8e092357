"""States inside members, against hooks on transformers' models, on both model runners."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from .reference import Reference, Text, continued
from .small_family import Running
from .test_composite import BASE, MIXED, TOLERANCE, UP_SCALED, greedy, prompt
from .test_scoring import EVERYBODY, OWN, assert_scored, score

pytestmark = pytest.mark.engine

LAYERS = {0: (0, 2), 1: (1,), 2: (0, 1), 3: (1, 0)}
"""Of every member; the base has three, others two."""


def read(
    text: Text,
    targets: Sequence[int],
    members: Sequence[int] = (0, 1, 2, 3),
    site: str = "residual",
    pool: str = "none",
    vectors: Sequence[Sequence[float]] = EVERYBODY,
) -> dict[str, Any]:
    """A request to score these tokens behind a text, with activations."""
    request = score(text, targets, vectors)
    for key in ("prompt", "prompts"):
        if key in request:
            request[key] = continued(request[key], targets[-1:])
    layers = [list(LAYERS[member]) for member in members]
    request["scoring"]["activations"] = {
        "members": list(members),
        "layers": layers,
        "site": site,
        "pool": pool,
    }
    return request


def run(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests in one batch; every score and activation must be the reference's."""
    outputs = running.engine.generate([{k: v for k, v in r.items() if k != "text"} for r in requests])
    for request, output in zip(requests, outputs, strict=True):
        if "scoring" in request:
            assert_read(running, request, output)
        else:
            tokens = output["choices"][0]["tokens"]
            assert tokens == running.reference.greedy(request["prompt"], request["coefficients"], len(tokens))
    return outputs


def assert_read(running: Running, request: dict[str, Any], output: dict[str, Any]) -> None:
    scoring = request["scoring"]
    for vector, found in zip(scoring["vectors"], output["scored"], strict=True):
        assert_scored(running, request["text"], scoring["targets"], vector, found)
    if (asked := scoring.get("activations")) is None:
        assert "activations" not in output
        return
    assert not isinstance(output["activations"], str), output["activations"]
    assert list(map(int, output["activations"])) == asked["members"]
    for member, layers in zip(asked["members"], asked["layers"], strict=True):
        found = output["activations"][str(member)]
        assert list(map(int, found)) == layers
        for layer in layers:
            expected = states(running.reference, request["text"], scoring["targets"], member, layer, asked)
            torch.testing.assert_close(torch.tensor(found[str(layer)]), expected, atol=TOLERANCE, rtol=1e-4)


def states(
    reference: Reference, text: Text, targets: Sequence[int], member: int, layer: int, asked: dict[str, Any]
) -> torch.Tensor:
    """What a hook on transformers' model sees for the completion's tokens, pooled."""
    whole = continued(text, targets)
    tokens = whole[member] if isinstance(whole[0], Sequence) else whole
    block = reference.models[member].base_model.layers[layer]
    seen: list[torch.Tensor] = []
    module = block if asked["site"] == "residual" else block.mlp
    handle = module.register_forward_hook(
        lambda _module, _inputs, output: seen.append(
            output if isinstance(output, torch.Tensor) else output[0]
        )
    )
    with torch.inference_mode():
        reference.models[member](torch.tensor([tokens]))
    handle.remove()
    rows = seen[0].reshape(len(tokens), -1)[-len(targets) :]
    return {"none": rows, "last": rows[-1:], "mean": rows.mean(dim=0, keepdim=True)}[asked["pool"]]


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_every_state_is_the_references_in_batches_that_mix_requests(running: Running, site: str) -> None:
    requests = [
        read(prompt(800, 9), prompt(801, 12), site=site),
        score(prompt(802, 9), prompt(803, 4)),
        read(prompt(804, 1), prompt(805, 1), members=(3, 1), site=site, pool="mean"),
        read(prompt(806, 20), prompt(807, 7), members=(2,), site=site, pool="last", vectors=[BASE]),
        greedy(prompt(808, 5), MIXED, 6),
        greedy(prompt(809, 7), UP_SCALED, 6),
    ]
    run(running, requests)


@pytest.mark.parametrize("pool", ["last", "mean", "none"])
def test_members_prompts_chunks_and_the_prefix_cache_change_nothing(running: Running, pool: str) -> None:
    """A step reads at most 64 tokens: completions are read in several, and one ends in a step of its last token."""
    seed = 8000 + 100 * len(pool) + ord(pool[0])
    texts = [[prompt(seed + 10 * i + m, n) for m, n in enumerate(lengths)] for i, lengths in enumerate(OWN)]
    requests = [
        *(read(text, prompt(seed + 50 + i, 30), pool=pool) for i, text in enumerate(texts)),
        read(prompt(seed + 60, 150), prompt(seed + 61, 90), pool=pool),
        read(prompt(seed + 62, 100), prompt(seed + 63, 29), pool=pool, members=(2, 3)),
        greedy(prompt(seed + 64, 90), UP_SCALED, 4),
    ]
    first, again = run(running, requests), run(running, requests)
    assert again[3]["cached_tokens"] >= 96 > first[3]["cached_tokens"]


def test_a_member_is_read_for_its_states_alone(running: Running) -> None:
    """It counts in no column, and two requests of a step ask different members for different states."""
    requests = [
        read(prompt(870, 9), prompt(871, 12), members=(2,), vectors=[BASE]),
        read(prompt(872, 9), prompt(873, 12), members=(3,), vectors=[BASE], site="mlp", pool="mean"),
        greedy(prompt(874, 9), BASE, 3),
    ]
    run(running, requests)


def test_preempted_requests_are_read_again_from_their_beginning(running: Running) -> None:
    """The last to come is the first to make room: it is in the middle of what is read when others need its blocks."""
    requests = [
        *(greedy(prompt(880 + i, 60), UP_SCALED, 40) for i in range(9)),
        read(prompt(890, 40), prompt(891, 200), pool="mean"),
        read(prompt(892, 50), prompt(893, 150)),
    ]
    outputs = run(running, requests)
    assert outputs[0]["metrics"]["vllm:num_preemptions"] > 0


def test_neighbours_are_answered_alike_whoever_asks(running: Running) -> None:
    """Nothing that a step computes for others depends on the hooks: not a bit of their numbers."""
    text, targets = prompt(895, 20), prompt(896, 9)
    asking = read(text, targets)
    silent = score(text, [*targets, 5])
    beside = [
        greedy(prompt(897, 9), MIXED, 8, logprobs=3),
        score(prompt(898, 70), prompt(899, 20)),
    ]
    answers = []
    for other in (silent, asking, silent):
        outputs = running.engine.generate(
            [{k: v for k, v in r.items() if k != "text"} for r in (other, *beside)]
        )
        choice = outputs[1]["choices"][0]
        answers.append((choice["tokens"], choice["logprobs"], outputs[2]["scored"]))
    assert answers[0] == answers[1] == answers[2]


def test_nothing_is_left_of_requests_that_have_ended_or_were_given_up(running: Running) -> None:
    """Not a hook, and no states on the device."""
    given_up = read(prompt(900, 90), prompt(901, 60))
    outputs = running.engine.generate(
        [
            {k: v for k, v in request.items() if k != "text"} | more
            for request, more in (
                (given_up, {"abort": True}),
                (read(prompt(902, 9), prompt(903, 4)), {}),
                (greedy(prompt(904, 9), MIXED, 3), {}),
            )
        ]
    )
    assert [bool(output) for output in outputs] == [False, True, True]
    left = run(running, [greedy(prompt(905, 9), MIXED, 3)])[0]["metrics"]
    assert (left["hooks:left"], left["states:left"]) == (0, 0)
