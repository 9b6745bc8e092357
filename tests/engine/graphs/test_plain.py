"""Plain vLLM on Model Runner V2 with emulated graphs against itself without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..driver import PLAIN, Engine
from ..test_composite import prompt
from .modes import FULL, PIECEWISE, graphed

pytestmark = pytest.mark.engine

TOLERANCE = 1e-5
"""Of log-probabilities: a padded batch may add up in another order."""


@pytest.fixture(scope="module")
def eager(family: Path) -> Iterator[Engine]:
    """The base alone, without graphs."""
    engine = Engine(family.parent / "base", [PLAIN], v2=True)
    yield engine
    engine.close()


def greedy(seed: int, length: int, count: int) -> dict[str, Any]:
    """A request."""
    return {
        "prompt": prompt(seed, length),
        "temperature": 0.0,
        "max_tokens": count,
        "ignore_eos": True,
        "logprobs": 3,
    }


@pytest.fixture(scope="module", params=[*FULL, *PIECEWISE])
def running(request: pytest.FixtureRequest, family: Path) -> Iterator[tuple[str, Engine]]:
    """A mode, and the base alone with its graphs."""
    engine = Engine(family.parent / "base", [PLAIN], v2=True, graphs=graphed(request.param))
    yield request.param, engine
    engine.close()


def test_graphs_change_nothing(eager: Engine, running: tuple[str, Engine]) -> None:
    """Batches of sizes that are padded and that are not, prompts in chunks beside requests that decode."""
    batches = [
        [greedy(1, 5, 6)],
        [greedy(10 + i, 4 + 3 * i, 9 - i) for i in range(5)],
        [greedy(20 + i, n, 5) for i, n in enumerate((150, 9, 70))],
        [greedy(30 + i, 3, 4) for i in range(16)],
    ]
    _, engine = running
    for batch in batches:
        without, outputs = eager.generate(batch), engine.generate(batch)
        assert outputs[0]["metrics"]["graphs:replayed"] > without[0]["metrics"]["graphs:replayed"] == 0
        for ours, theirs in zip(outputs, without, strict=True):
            assert_equal(ours["choices"][0], theirs["choices"][0])


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The same tokens with the same log-probabilities."""
    assert ours["tokens"] == theirs["tokens"]
    for row, expected in zip(ours["logprobs"], theirs["logprobs"], strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)


CAPTURED_AND_REPLAYED = {
    # Five sizes, and the two largest for profiling; one step reads the prompt, five decode.
    "FULL_DECODE_ONLY": (2 + 5, 5),
    "FULL": (2 + 7, 6),
    # Four pieces around three layers of attention, all of them for profiling, too.
    "PIECEWISE": (2 * 7 * 4, 6 * 4),
    "FULL_AND_PIECEWISE": (2 * 7 * 4 + 2 + 5, 4 + 5),
}


def test_every_step_that_a_graph_fits_replays_it(running: tuple[str, Engine]) -> None:
    mode, engine = running
    replayed = engine.generate([greedy(1, 5, 6)])[0]["metrics"]["graphs:replayed"]
    assert (engine.facts["graphs"], replayed) == CAPTURED_AND_REPLAYED[mode]
