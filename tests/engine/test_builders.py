"""Attention's metadata builders, as vLLM makes them for GPUs: each has room for the heads of its own layers."""

from typing import Any

import pytest
import torch
from torch import nn
from vllm import EngineArgs
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.utils import AttentionGroup

from eft_server.engine.launcher.plan import plan
from eft_server.engine.worker.composite import Manifest, _base_config, _member_config
from eft_server.engine.worker.member_prompts import MemberAttention
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .checkpoints import write_checkpoint
from .small_family import FAMILY

pytestmark = pytest.mark.engine

HEADS = {"base": (4, 32), "ref": (2, 64), "a": (4, 32), "b": (8, 128)}
"""How many query heads a member has, and how wide they are; each has a single key head."""


class Attending(nn.Module, AttentionLayerBase):
    """An attention layer, as far as builders look at it."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def get_attn_backend(self) -> Any:
        return TritonAttentionBackend

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VllmConfig]:
    folder = tmp_path_factory.mktemp("builders")
    for seed, (name, (heads, width)) in enumerate(HEADS.items()):
        write_checkpoint(folder / name, seed, num_attention_heads=heads, head_dim=width)
    (folder / "family.yaml").write_text(FAMILY)
    config = load_config(str(folder / "family.yaml"))
    engine = EngineArgs(**plan(config, inspect_family(config)).options).create_engine_config()
    for name, (heads, _) in HEADS.items():
        engine.compilation_config.static_forward_context[layer_of(name)] = Attending(heads)
    manifest = Manifest.from_hf(engine.model_config.hf_config)
    made = {"base": _base_config(engine, manifest)}
    return {**made, **{item.name: _member_config(engine, item) for item in manifest.members}}


def layer_of(name: str) -> str:
    return f"members.{name}.model.layers.0.self_attn.attn"


def as_vllm_makes_it(configs: dict[str, VllmConfig], *names: str) -> AttentionGroup:
    """Layers of one shape, with a builder that knows the base's settings."""
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=HEADS[names[0]][1], dtype=torch.float32)
    group = AttentionGroup(TritonAttentionBackend, [layer_of(name) for name in names], spec, 0)
    group.create_metadata_builders(configs["base"], torch.device("cpu"), 16)
    return group


def test_tritons_scratch_is_as_wide_as_the_members_heads(configs: dict[str, VllmConfig]) -> None:
    groups = [[as_vllm_makes_it(configs, *names) for names in (("base", "a"), ("ref",), ("b",))]]
    found = {}
    for name, config in configs.items():
        [own] = MemberAttention(f"members.{name}.", groups, config).groups
        assert own.layer_names == [layer_of(name)]
        _, heads, _, width = own.metadata_builders[0].softmax_segm_output.shape
        found[name] = (heads, width)
    assert found == HEADS


def test_heads_that_no_settings_have_room_for_are_refused_by_name(configs: dict[str, VllmConfig]) -> None:
    """A member whose layers differ says how wide the narrow ones are."""
    group = as_vllm_makes_it(configs, "b")
    with pytest.raises(ValueError, match=r"members\.b\..* has heads of size 128.*TRITON_ATTN.*32"):
        MemberAttention("members.b.", [[group]], configs["a"])


class Builder:
    """One that needs a workspace."""

    requires_block_table_width = False

    def __init__(self, spec: Any, layers: list[str], config: Any, device: torch.device) -> None:
        self.kv_cache_spec, self.device, self.workspace = spec, device, torch.empty(1)

    def _get_workspace_buffer(self) -> torch.Tensor:
        return self.workspace

    def set_workspace_buffer(self, workspace: torch.Tensor) -> None:
        self.workspace = workspace


def test_the_members_builders_share_the_one_workspace(
    configs: dict[str, VllmConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer's is 394 MiB, and would be made anew for each member at its first step."""
    monkeypatch.setattr(TritonAttentionBackend, "get_builder_cls", lambda: Builder)
    group = as_vllm_makes_it(configs, "base", "a")
    shared = group.metadata_builders[0].workspace
    for name in ("base", "a"):
        [own] = MemberAttention(f"members.{name}.", [[group]], configs[name]).groups
        assert own.metadata_builders[0] is not group.metadata_builders[0]
        assert own.metadata_builders[0].workspace is shared
