"""Code that is compiled ahead of time: each member's is its own, an adapter's as well as its reference's."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from vllm import EngineArgs
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import VllmConfig

from eft_server.engine.launcher.plan import plan
from eft_server.engine.worker import composite
from eft_server.engine.worker.compiled import LABEL
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config

from .adapters import write_adapter
from .ahead import compiled_ahead
from .checkpoints import write_checkpoint
from .small_family import FAMILY, SHARED

pytestmark = pytest.mark.engine

ADAPTED = {"q_proj": 4, "o_proj": 4, "up_proj": 4, "down_proj": 4}
MEMBERS = ("base", "ref", "a", "b")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one shape on the reference."""
    folder = tmp_path_factory.mktemp("ahead")
    write_checkpoint(folder / "base", 0, num_hidden_layers=1)
    tied = dict(tie_word_embeddings=True, num_hidden_layers=1)
    write_checkpoint(folder / "ref", 1, "qwen2", vocab_size=SHARED, **tied)
    adapters = []
    for seed, name in enumerate(("a", "b"), start=2):
        write_adapter(folder / name, folder / "ref", seed, ADAPTED, spread=0.15)
        adapters.append(f"{name}: {{adapter: ./{name}, reference: ref}}")
    text = FAMILY.replace("{a: ./a, b: ./b}", f"{{{', '.join(adapters)}}}")
    (folder / "family.yaml").write_text(text)
    return folder / "family.yaml"


def settings_of_members(family: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, VllmConfig]]:
    """What vLLM would be given to build each member with, and the operator's settings among it."""
    built: list[VllmConfig] = []

    def build(config: VllmConfig, prefix: str) -> nn.Module:
        built.append(config)
        return nn.Module()

    monkeypatch.setattr(composite, "init_vllm_registered_model", build)
    monkeypatch.setattr(composite, "placement", lambda _: nullcontext())
    monkeypatch.setattr(composite, "share_weights", lambda *_: None)
    config = load_config(str(family))
    options: dict[str, Any] = {**plan(config, inspect_family(config)).options, "additional_config": {"x": 1}}
    engine = EngineArgs(**options).create_engine_config()
    composite.EftForCausalLM(vllm_config=engine)
    assert engine.additional_config == {"x": 1}, "the engine's own settings stay as they are"
    return zip(MEMBERS, built, strict=True)


def test_what_names_compiled_code_is_different_for_every_member_and_the_same_at_every_start(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [dict(settings_of_members(family, monkeypatch)) for _ in range(2)]
    first, second = ({name: str(aot_compile_hash_factors(c)) for name, c in s.items()} for s in starts)
    assert len(set(first.values())) == len(MEMBERS)
    assert first == second
    for config in starts[0].values():
        assert set(config.additional_config) == {"x", LABEL}


@pytest.mark.full
def test_members_run_their_own_code_and_attend_with_their_own_layers(family: Path, tmp_path: Path) -> None:
    found = compiled_ahead(family, tmp_path)
    assert list(tmp_path.glob("torch_compile_cache/torch_aot_compile/*/rank_0_0/model")), "nothing was kept"
    for name, member in found.items():
        assert member["apart"] < 1e-4, name
        assert member["attended"] == [f"members.{name}.model.layers.0.self_attn.attn"]
        assert not member["loaded"], "it is not another member's"
