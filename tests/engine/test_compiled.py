"""Members that torch.compile has traced against plain transformers, on both model runners."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import test_prompts
from .adapters import write_adapter, write_merged
from .checkpoints import write_checkpoint
from .driver import Engine
from .reference import Reference
from .small_family import FAMILY, SHARED, Running
from .test_composite import FILTERED_BY_EXPERT, MIXED, SETTINGS, check, greedy, prompt
from .test_scoring import check_scores, score

pytestmark = pytest.mark.engine

COMPILED = ["vllm.enforce_eager=false", "speculative={draft: a, tokens: 3}"]
ADAPTED = {"q_proj": 4, "o_proj": 4, "up_proj": 4, "down_proj": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members of different shapes, the last an adapter on the reference."""
    folder = tmp_path_factory.mktemp("compiled")
    write_checkpoint(folder / "base", 0, hidden_size=96, num_attention_heads=3)
    write_checkpoint(
        folder / "ref", 1, "qwen2", vocab_size=SHARED, tie_word_embeddings=True, num_hidden_layers=1
    )
    write_checkpoint(folder / "a", 2, vocab_size=112, num_hidden_layers=1)
    write_adapter(folder / "b", folder / "ref", 3, ADAPTED, spread=0.15)
    write_merged(folder / "merged" / "b", folder / "ref", folder / "b")
    adapter = FAMILY.replace("b: ./b", "b: {adapter: ./b, reference: ref}")
    (folder / "family.yaml").write_text(adapter)
    return folder


@pytest.fixture(scope="module", params=["v1", "v2"])
def compiled(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    """V1 with Inductor's code; V2 traced alone (what vLLM does where a CI asks for it), which takes less time."""
    v2 = request.param == "v2"
    environment = {"VLLM_CACHE_ROOT": str(folder / f"cache-{request.param}")}
    engine = Engine(
        folder / "family.yaml", COMPILED, v2, environment | ({"VLLM_CPU_CI_ENV": "1"} if v2 else {})
    )
    checkpoints = [folder / name for name in ("base", "ref", "a", "merged/b")]
    yield Running(engine, Reference(checkpoints, vocab_size=96, shared=SHARED), v2, speculative=True)
    engine.close()
    assert list(folder.glob(f"cache-{request.param}/torch_compile_cache/**/*")), "nothing was compiled"


def test_a_batch_that_mixes_weights_filters_and_prompts_equals_the_reference(compiled: Running) -> None:
    requests = [greedy(prompt(index, 5 + 30 * index), setting) for index, setting in enumerate(SETTINGS)]
    own = [
        test_prompts.apart([9, 40, 3, 20], MIXED, seed=1),
        test_prompts.apart([5, 6, 50, 7], FILTERED_BY_EXPERT, seed=2),
    ]
    check(compiled, [*requests, *own])


def test_chunks_cut_through_the_difference_of_prompts(compiled: Running) -> None:
    test_prompts.test_chunks_cut_through_the_difference(compiled)


def test_scores_equal_the_reference(compiled: Running) -> None:
    check_scores(compiled, [score(prompt(9, 70), prompt(10, 9)), score([4], [5])])
