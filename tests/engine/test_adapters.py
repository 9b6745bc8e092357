"""Experts that are LoRA adapters against transformers with the adapters merged in, on both model runners."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from eft_server.engine.launcher.plan import plan
from eft_server.engine.worker.adapters import LowRank, own_share, share_weights
from eft_server.errors import FamilyError
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .adapters import write_adapter, write_merged
from .checkpoints import write_checkpoint
from .driver import Engine
from .loaded import own_bytes
from .reference import Reference
from .small_family import Running
from .test_activations import states
from .test_composite import check, greedy, prompt

pytestmark = pytest.mark.engine

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEMBERS = ("base", "ref", "attention", "everything", "patterned", "on-base", "on-base-too")
FAMILY = """
name: small
base: ./base
references: {ref: ./ref}
experts:
  attention: {adapter: ./attention, reference: ref}
  everything: {adapter: ./everything, reference: ref}
  patterned: {adapter: ./patterned, reference: ref}
  on-base: {adapter: ./on-base, reference: base}
  on-base-too: {adapter: ./on-base-too, reference: base}
limits: {weight: {min: -2, max: 2}, total: 4}
vllm:
  dtype: float32
  max_model_len: 256
  max_num_seqs: 16
  max_num_batched_tokens: 64
  block_size: 32
  kv_cache_memory_bytes: 67108864
  disable_log_stats: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts as the base, a reference with biases and tied heads, and adapters on both."""
    folder = tmp_path_factory.mktemp("adapters")
    mixture = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, mlp_only_layers=[1])
    write_checkpoint(folder / "base", 0, "qwen3_moe", num_hidden_layers=3, **mixture)
    write_checkpoint(folder / "ref", 1, "qwen2", tie_word_embeddings=True)
    ref, base = folder / "ref", folder / "base"
    write_adapter(folder / "attention", ref, 2, dict(q_proj=4, v_proj=4))
    write_adapter(folder / "everything", ref, 3, dict.fromkeys(ALL, 4), spread=0.15, use_rslora=True)
    ranks, alphas = {"k_proj": 2, "down_proj": 7}, {"o_proj": 3}
    targets = {"k_proj": 2, "o_proj": 4, "up_proj": 4, "down_proj": 7}
    write_adapter(folder / "patterned", ref, 4, targets, rank_pattern=ranks, alpha_pattern=alphas)
    write_adapter(folder / "on-base", base, 5, dict.fromkeys(ALL[:4], 4), spread=0.15)
    write_adapter(folder / "on-base-too", base, 6, dict(o_proj=4, k_proj=4))
    for name in MEMBERS[2:]:
        write_merged(folder / "merged" / name, base if name.startswith("on-base") else ref, folder / name)
    (folder / "family.yaml").write_text(FAMILY)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    merged = [folder / "merged" / name for name in MEMBERS[2:]]
    return Reference([folder / "base", folder / "ref", *merged], vocab_size=96, shared=93)


@pytest.fixture(scope="module", params=[False, True], ids=["v1", "v2"])
def running(request: pytest.FixtureRequest, folder: Path, reference: Reference) -> Iterator[Running]:
    engine = Engine(folder / "family.yaml", v2=request.param)
    yield Running(engine, reference, v2=request.param, speculative=False)
    engine.close()


def alone(member: int) -> list[float]:
    return [float(index == member) for index in range(len(MEMBERS))]


SETTINGS = [
    *(alone(member) for member in range(len(MEMBERS))),
    [1.0, -1.5, 0.9, 0.6, 0.0, 0.0, 0.0],
    [1.0, -0.4, 0.0, -0.5, 0.9, 0.0, 0.0],
    [0.2, -0.9, 0.3, 0.3, 0.3, 0.5, 0.3],
]
"""Every member alone, the references as plain members among them, and vectors."""


def test_adapters_equal_merged_checkpoints_in_a_batch_of_mixed_weights(running: Running) -> None:
    check(running, [greedy(prompt(300 + i, 4 + 5 * i), setting, 8) for i, setting in enumerate(SETTINGS)])


def test_adapters_read_long_prompts_in_parts_and_from_the_prefix_cache(running: Running) -> None:
    shared = prompt(320, 96)
    requests = [greedy(shared + prompt(330 + i, 9), setting, 4) for i, setting in enumerate(SETTINGS[-3:])]
    check(running, [greedy(shared, [0.2] * len(MEMBERS), 2)])  # All members read it.
    outputs = check(running, requests)
    assert all(output["cached_tokens"] >= 96 for output in outputs)


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_activations_are_the_adapters_own_and_not_its_references(running: Running, site: str) -> None:
    """All of them in one step: members share modules, and what an adapter adds is in its own states alone."""
    members = range(len(MEMBERS))
    text, targets = prompt(360, 50), prompt(361, 30)
    asked = {"members": list(members), "layers": [[0, 1]] * len(members), "site": site, "pool": "none"}
    scoring = {"first": 49, "targets": targets, "vectors": [alone(0)], "activations": asked}
    request = {"prompt": [*text, *targets], "scoring": scoring}
    outputs = running.engine.generate([dict(request), greedy(prompt(362, 9), SETTINGS[-1], 4)])
    for member in members:
        for layer in (0, 1):
            expected = states(running.reference, text, targets, member, layer, asked)
            found = torch.tensor(outputs[0]["activations"][str(member)][str(layer)])
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_adapters_take_their_low_rank_numbers_and_nothing_else(folder: Path) -> None:
    """The memory of weights, counted by tensors' storage; an attention layer has four scales of its own."""
    members = inspect_family(load_config(folder / "family.yaml")).members
    found = own_bytes(folder / "family.yaml")
    extra = {m.name: found[m.name] - m.weight_bytes("float32") for m in members if m.adapter_of}
    assert extra == {"attention": 32, "everything": 32, "patterned": 32, "on-base": 48, "on-base-too": 48}


def planned(folder: Path, adapter: Path) -> None:
    config = load_config(folder / "family.yaml", [f"experts.attention.adapter={adapter}"])
    plan(config, inspect_family(config))


@pytest.mark.parametrize(
    ("targets", "settings", "words"),
    [
        ({"q_proj": 5}, {}, "layers.0.self_attn.q_proj' has rank 5, but its adapter_config.json says 4"),
        ({"q_proj": 4}, {"rank_pattern": {"q_proj": 2}}, "has rank 4, but its adapter_config.json says 2"),
        ({"q_proj": 520}, {"r": 520}, "520"),
        ({"q_proj": 4}, {"r": 0}, "must be a positive integer"),
    ],
)
def test_ranks_that_are_not_the_stated_ones_are_refused_before_the_engine_starts(
    folder: Path, tmp_path: Path, targets: dict[str, int], settings: dict[str, Any], words: str
) -> None:
    adapter = write_adapter(tmp_path / "wrong", folder / "ref", 9, targets, **settings)
    with pytest.raises(FamilyError, match=f"member 'attention'.*{words}"):
        planned(folder, adapter)


def sharded(kind: type[LinearBase], rank: int, **attributes: Any) -> Any:
    """One of two GPUs' share of a layer, as far as adapters look at it."""
    layer = kind.__new__(kind)
    for name, value in {"tp_size": 2, "tp_rank": rank, **attributes}.items():
        setattr(layer, name, value)
    return layer


def test_the_shares_of_a_sharded_layer_make_up_the_whole_term() -> None:
    """Inputs are summed over GPUs, outputs stand side by side, and heads that are copied are whole on each."""
    a_RI, b_OR, x_TI = torch.randn(4, 16), torch.randn(8, 4), torch.randn(3, 16)
    whole = (x_TI @ a_RI.T) @ b_OR.T
    rows = [own_share(sharded(RowParallelLinear, rank), LowRank("l", None, a_RI, b_OR)) for rank in (0, 1)]
    parts = [(x @ a.T) @ b.T for x, (a, b) in zip(x_TI.chunk(2, dim=1), rows, strict=True)]
    torch.testing.assert_close(sum(parts), whole)
    columns = [
        own_share(sharded(MergedColumnParallelLinear, rank), LowRank("l", 1, a_RI, b_OR)) for rank in (0, 1)
    ]
    torch.testing.assert_close(torch.cat([(x_TI @ a.T) @ b.T for a, b in columns], dim=1), whole)
    for rank in (0, 1):
        layer = sharded(QKVParallelLinear, rank, num_kv_head_replicas=2)
        _, keys = own_share(layer, LowRank("l", 1, a_RI, b_OR))
        _, queries = own_share(layer, LowRank("l", 0, a_RI, b_OR))
        assert (keys.shape, queries.shape) == ((8, 4), (4, 4))


class Attending(torch.nn.Module, AttentionLayerBase):
    """An attention layer, as far as sharing looks at it."""

    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


class Layer(torch.nn.Module):
    """A layer that keeps a parameter beside its attention, as some architectures do."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.attn, self.norm = Attending(), torch.nn.LayerNorm(4)
        self.scale = torch.nn.Parameter(torch.ones(4)) if scaled else None


def test_weights_that_cannot_be_shared_are_refused_and_the_others_are_one_object() -> None:
    """A parameter of the expert's own would stay as it was made, since no checkpoint has it."""
    expert, reference = Layer(scaled=False), Layer(scaled=False)
    share_weights("helpful", expert, reference, [])
    assert expert.norm is reference.norm
    assert expert.attn is not reference.attn
    with pytest.raises(
        ValueError, match="member 'helpful': Layer keeps 'scale' where adapters cannot share it"
    ):
        share_weights("helpful", Layer(scaled=True), Layer(scaled=True), [])
