"""Families of small random checkpoints, and one running engine of each kind for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .checkpoints import write_checkpoint
from .driver import Engine
from .reference import Reference
from .small_family import FAMILY, POISON, SHARED, Running


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members of different shapes; the vocabularies are padded to less, more and as much as the base's."""
    folder = tmp_path_factory.mktemp("small")
    wide = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    write_checkpoint(folder / "base", 0, num_hidden_layers=3, hidden_size=96, num_attention_heads=3)
    write_checkpoint(folder / "ref", 1, vocab_size=SHARED)
    write_checkpoint(folder / "a", 2, vocab_size=112)
    write_checkpoint(folder / "b", 3, "qwen2", tie_word_embeddings=False, **wide)
    _poison(folder / "b" / "model.safetensors")
    (folder / "family.yaml").write_text(FAMILY)
    return folder / "family.yaml"


def _poison(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][POISON] = torch.inf
    tensors["lm_head.weight"][POISON] = 0  # Where b drafts, it never drafts this.
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def reference(family: Path) -> Reference:
    """The family in plain transformers."""
    return Reference(
        [family.parent / name for name in ("base", "ref", "a", "b")], vocab_size=96, shared=SHARED
    )


# The names of the parameters: which model runner, and whether it speculates.
KINDS = {
    "v1": (False, False),
    "v1-speculative": (False, True),
    "v2": (True, False),
    "v2-speculative": (True, True),
}


@pytest.fixture(scope="session", params=KINDS, ids=str)
def running(request: pytest.FixtureRequest, family: Path, reference: Reference) -> Iterator[Running]:
    """Each model runner, with and without speculation, one after the other; the last ends with the tests of engines."""
    v2, speculative = KINDS[request.param]
    overrides = ["speculative={draft: b, tokens: 3}"] if speculative else []
    engine = Engine(family, overrides, v2)
    _running.append(engine)
    yield Running(engine, reference, v2, speculative)
    engine.close()


_running: list[Engine] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Do not keep the last of them for the session: other tests have no use for it."""
    if nextitem is None or not nextitem.nodeid.startswith("tests/engine/"):
        for engine in _running:
            engine.close()
        _running.clear()


LEFT_OUT = (
    ("test_samples_follow_the_composites_distribution[v2", "-mixed]"),
    ("graphs/test_plain.py", "FULL]", "FULL_AND_PIECEWISE]"),
    ("graphs/test_composite_graphs.py", "FULL]", "FULL-", "FULL_AND_PIECEWISE]"),
    ("test_the_second_start_loads_what_the_first_compiled",),
)
"""Tests that `make test-full` alone runs: what their names hold, and what those that stay hold besides."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-full` what takes minutes and has a like in what stays (docs/testing.md)."""
    for item in items:
        for name, *kept in LEFT_OUT:
            if name in item.nodeid and not any(part in item.nodeid for part in kept):
                item.add_marker(pytest.mark.full)
