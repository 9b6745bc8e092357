"""Who drafts: a member that is loaded already, another checkpoint, or the text itself."""

from pathlib import Path
from typing import Any

import pytest

from .driver import Engine
from .reference import Reference
from .small_family import Running
from .test_composite import MIXED, UP_SCALED, check, greedy, prompt
from .test_prompts import apart

pytestmark = pytest.mark.engine

B_ALONE = [0.0, 0.0, 0.0, 1.0]
SPECULATIVE = pytest.mark.parametrize("running", ["v1-speculative", "v2-speculative"], indirect=True)


def acceptance(outputs: list[dict[str, Any]]) -> float:
    """How many of the drafts were right."""
    drafts = [choice["drafts"] for output in outputs for choice in output["choices"]]
    return sum(d["accepted"] for d in drafts) / sum(d["proposed"] for d in drafts)


@SPECULATIVE
def test_a_member_agrees_with_its_own_drafts(running: Running) -> None:
    """Wrong positions, slots or tokens would make drafts that the same member would not have written."""
    requests = [greedy(prompt(300 + i, 20 + 31 * i), B_ALONE, 40) for i in range(3)]
    assert acceptance(check(running, requests)) > 0.9


@SPECULATIVE
def test_a_member_drafts_on_its_own_prompt(running: Running) -> None:
    requests = [
        apart(lengths, B_ALONE, 40, seed=310 + i)
        for i, lengths in enumerate(([40, 90, 70, 12], [9, 8, 7, 130], [100, 5, 5, 55]))
    ]
    assert acceptance(check(running, requests)) > 0.9


@pytest.mark.parametrize("drafting", ["{draft: ./b, tokens: 3}", "{method: ngram, tokens: 3, lookup_min: 1}"])
def test_other_drafts_change_nothing_but_the_speed(family: Path, reference: Reference, drafting: str) -> None:
    engine = Engine(family, [f"speculative={drafting}"])
    running = Running(engine, reference, v2=False, speculative=True)
    repeating = prompt(320, 7) * 6
    requests = [greedy(repeating, MIXED, 20), greedy(prompt(321, 70), UP_SCALED), greedy(repeating, B_ALONE)]
    outputs = check(running, [*requests, apart([9, 40, 30, 22], MIXED, seed=322)])
    engine.close()
    assert sum(output["choices"][0]["drafts"]["proposed"] for output in outputs) > 0
