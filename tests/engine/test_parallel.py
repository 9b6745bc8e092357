"""A family over two ranks of tensor parallelism against plain transformers: what is sharded and what is whole."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .adapters import write_adapter, write_merged
from .checkpoints import write_checkpoint
from .driver import Engine
from .reference import Reference
from .small_family import SHARED, Running
from .test_activations import states
from .test_adapters import ALL
from .test_composite import check, greedy, prompt
from .test_reports import check_reports
from .test_scoring import check_scores, score

pytestmark = pytest.mark.engine

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("llama", dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2)),
    "ref": ("llama", dict(hidden_size=96, num_attention_heads=3, vocab_size=SHARED)),
    "odd": ("qwen2", dict(hidden_size=96, num_attention_heads=3, num_key_value_heads=3, vocab_size=112)),
    "experts": ("mixtral", dict(num_attention_heads=3, num_local_experts=2, num_experts_per_tok=2)),
    "even": ("llama", dict(num_hidden_layers=1)),
    "beside": ("cohere", dict(logit_scale=0.25, num_attention_heads=4, num_key_value_heads=2)),
}
"""Two ranks do not divide three heads; `even` is sharded, its one key/value head is copied. So is `beside`, which adds
up what its attention and its feed-forward network gave on either rank only behind both. The mixture uses all of its
experts for every token: which ones it uses would be rounding's to decide where its router has a near-tie."""

ADAPTERS = {"thin": "base", "slim": "ref"}
"""Adapters and what they are on: one's terms are cut to a rank's share, the other's are whole."""

FAMILY = """
name: spread
base: ./base
references: {ref: ./ref}
experts:
  odd: ./odd
  experts: ./experts
  even: {model: ./even, tensor_parallel: sharded}
  beside: {model: ./beside, tensor_parallel: sharded}
  thin: {adapter: ./thin, reference: base}
  slim: {adapter: ./slim, reference: ref}
limits: {weight: {min: -2, max: 2}, total: 4}
vllm: {tensor_parallel_size: 2, dtype: float32, max_model_len: 256, max_num_seqs: 16, max_num_batched_tokens: 64,
  block_size: 32, num_gpu_blocks_override: 24, kv_cache_memory_bytes: 67108864, disable_log_stats: false}
"""

DRAFT = "speculative={draft: even, tokens: 3}"

BESIDE = list(HEADS).index("beside")

SETTINGS = [
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.6, -1.2, 0.3, 0.5, 0.4, 0.2, 0.3, 0.2],
    [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for seed, (name, (model_type, sizes)) in enumerate(HEADS.items()):
        write_checkpoint(folder / name, seed, model_type, **sizes)
    for seed, (name, reference) in enumerate(ADAPTERS.items(), len(HEADS)):
        write_adapter(folder / name, folder / reference, seed, dict.fromkeys(ALL, 4), spread=0.15)
        write_merged(folder / "merged" / name, folder / reference, folder / name)
    (folder / "family.yaml").write_text(FAMILY)
    return folder


RAY_ENVIRONMENT = {
    # vLLM schedules Ray's actors by GPU: Ray is told of two, and vLLM that the CPU is counted in them.
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parent / "ray_cpu"), os.environ.get("PYTHONPATH")))
    ),
    "RAY_OVERRIDE_RESOURCES": '{"GPU": 2}',
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture(scope="module", params=["v1-speculative", "v2", "v1-ray"])
def spread(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    """Both model runners: one of them with a sharded draft, and under vLLM's Ray executor."""
    v2, speculative, ray = request.param == "v2", "speculative" in request.param, "ray" in request.param
    overrides = [DRAFT] if speculative else ["vllm.distributed_executor_backend=ray"] if ray else []
    engine = Engine(folder / "family.yaml", overrides, v2, RAY_ENVIRONMENT if ray else None)
    checkpoints = [*(folder / name for name in HEADS), *(folder / "merged" / name for name in ADAPTERS)]
    reference = Reference(checkpoints, vocab_size=96, shared=SHARED)
    yield Running(engine, reference, v2, speculative)
    engine.close()


def test_two_ranks_equal_the_reference_with_mixed_weights(spread: Running) -> None:
    check(spread, [greedy(prompt(300 + i, 5 + 25 * i), setting, 8) for i, setting in enumerate(SETTINGS)])


def test_reports_of_two_ranks_are_the_composites(spread: Running) -> None:
    requests = [
        greedy(prompt(390 + i, 5 + 25 * i), setting, 6, report=i % 3 != 2)
        for i, setting in enumerate(SETTINGS)
    ]
    check_reports(spread, requests)


def test_prompt_logprobs_of_two_ranks_are_the_composites(spread: Running) -> None:
    requests = [
        greedy(prompt(320 + i, 40), setting, 2, prompt_logprobs=2) for i, setting in enumerate(SETTINGS)
    ]
    for request, output in zip(requests, check(spread, requests), strict=True):
        expected = spread.reference.logprobs(request["prompt"], request["coefficients"])
        for position, reported in enumerate(output["prompt_logprobs"][1:]):
            for token, value in reported.items():
                assert value == pytest.approx(float(expected[position, int(token)]), abs=1e-3)


def test_two_ranks_score_as_the_reference_does(spread: Running) -> None:
    check_scores(spread, [score(prompt(330, 30), prompt(331, 50), SETTINGS), score([4], [5], SETTINGS)])


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_activations_of_two_ranks_are_whole(spread: Running, site: str) -> None:
    """Of members that are sharded, and of those that each rank holds: the first rank's are the sums over both."""
    members = [member for member in range(len(SETTINGS[0])) if member != BESIDE]
    text, targets = prompt(560, 50), prompt(561, 30)
    asked = {"members": members, "layers": [[0]] * len(members), "site": site, "pool": "none"}
    scoring = {"first": 49, "targets": targets, "vectors": [SETTINGS[0]], "activations": asked}
    [output] = spread.engine.generate([{"prompt": [*text, *targets], "scoring": scoring}])
    for member in members:
        expected = states(spread.reference, text, targets, member, 0, asked)
        found = torch.tensor(output["activations"][str(member)]["0"])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_rank_s_share_of_a_state_is_no_state(spread: Running) -> None:
    asked = {"members": [BESIDE], "layers": [[0]], "site": "mlp", "pool": "none"}
    scoring = {"first": 9, "targets": [5], "vectors": [SETTINGS[0]], "activations": asked}
    [output] = spread.engine.generate([{"prompt": [*prompt(562, 10), 5], "scoring": scoring}])
    assert "adds its feed-forward modules up over ranks only behind them" in output["activations"]


def test_each_rank_caches_what_the_report_says(spread: Running, folder: Path) -> None:
    report = inspect_family(load_config(folder / "family.yaml", [DRAFT] if spread.speculative else []))
    expected = sum(member.kv_bytes_per_token * member.kv_share(2) for member in report.loaded)
    assert spread.engine.facts["kv_bytes_per_token"] == [expected, expected]
