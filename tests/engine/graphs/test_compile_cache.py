"""What a start leaves in vLLM's ahead-of-time cache for the next: one entry for each member, and no other's."""

from contextlib import closing
from pathlib import Path

import pytest

from ..adapters import write_adapter, write_merged
from ..checkpoints import write_checkpoint
from ..driver import Engine
from ..reference import Reference
from ..small_family import FAMILY, SHARED, Running
from ..test_composite import check, greedy, prompt
from .modes import graphed

pytestmark = pytest.mark.engine

VECTORS = [[1.0, 0.0, 0.0], [1.0, -1.0, 1.0], [0.0, 0.0, 1.0]]
ADAPTED = {"q_proj": 4, "o_proj": 4, "up_proj": 4, "down_proj": 4}


def start_twice(folder: Path, expert: str, checkpoints: list[Path]) -> list[dict[str, int]]:
    """Start the family on an empty cache and once more, and check what it computes; how its members were compiled."""
    members = FAMILY.replace("{a: ./a, b: ./b}", f"{{b: {expert}}}")
    (folder / "family.yaml").write_text(members)
    reference = Reference(checkpoints, vocab_size=96, shared=SHARED)
    environment = {"VLLM_CACHE_ROOT": str(folder / "cache")}
    graphs = graphed("FULL_DECODE_ONLY") | {"mode": 3, "backend": "inductor"}
    facts = []
    for _ in range(2):
        with closing(
            Engine(folder / "family.yaml", v2=True, environment=environment, graphs=graphs)
        ) as engine:
            facts.append(engine.facts["ahead_of_time"])
            running = Running(engine, reference, v2=True, speculative=False)
            check(running, [greedy(prompt(i, 5 + 9 * i), vector, 4) for i, vector in enumerate(VECTORS)])
    return facts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of three members of different shapes, the smallest there are."""
    write_checkpoint(tmp_path / "base", 0, num_hidden_layers=1, hidden_size=96, num_attention_heads=3)
    write_checkpoint(tmp_path / "ref", 1, num_hidden_layers=1, vocab_size=SHARED)
    return tmp_path


def test_the_second_start_loads_what_the_first_compiled(folder: Path) -> None:
    write_checkpoint(folder / "b", 2, num_hidden_layers=1, intermediate_size=96)
    facts = start_twice(folder, "./b", [folder / name for name in ("base", "ref", "b")])
    assert facts == [{"compiled": 3, "loaded": 0}, {"compiled": 0, "loaded": 3}]


def test_an_adapter_does_not_load_what_its_reference_compiled(folder: Path) -> None:
    write_adapter(folder / "b", folder / "ref", 3, ADAPTED, spread=0.15)
    write_merged(folder / "merged" / "b", folder / "ref", folder / "b")
    checkpoints = [folder / name for name in ("base", "ref", "merged/b")]
    facts = start_twice(folder, "{adapter: ./b, reference: ref}", checkpoints)
    assert facts == [{"compiled": 3, "loaded": 0}, {"compiled": 0, "loaded": 3}]
