"""Lines as texts and prompts, the demo family's pairs, and how much parameters changed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eft_client.pairs.pair import Pair
from eft_client.probe.changes import measure_changes, signature_of
from eft_client.probe.demo_pairs import demo_pairs
from eft_client.probe.errors import ProbeError
from eft_client.probe.examples import Examples
from eft_client.probe.members import members_of_family
from eft_server.errors import ConfigError


def pair(number: int, prompt: str, chosen: str, rejected: str | None = None, **more: Any) -> Pair:
    return Pair(id=str(number), prompt=prompt, chosen=chosen, rejected=rejected, **more)


def test_equal_texts_are_read_once_and_equal_prompts_are_one() -> None:
    found = Examples.of(
        [pair(1, "a", "x", "y"), pair(2, "a", "x", "z"), pair(3, "b", "x", "x"), pair(4, "b", "x", "y")]
    )
    assert (len(found.texts), found.prompts, found.alike) == (5, 2, 1)
    first, second, _ = found.examples
    assert first.chosen == second.chosen and first.rejected != second.rejected
    assert found.default_target == "preference"
    assert found.digest != Examples.of([pair(1, "a", "x", "y")]).digest


def test_the_default_target_follows_from_the_data() -> None:
    labelled = [pair(1, "a", "x", label=True), pair(2, "b", "y", label=0)]
    assert Examples.of(labelled).default_target == "label"
    assert Examples.of([*labelled, pair(3, "c", "z")]).default_target == "reward"
    with pytest.raises(ProbeError, match="preference: 2 lines have no pair"):
        Examples.of(labelled).require("preference")


def test_labels_that_are_no_numbers_are_refused() -> None:
    for label in ("good", math.nan, 10**400):
        with pytest.raises(ProbeError, match="expected 0, 1 or another number"):
            Examples.of([pair(1, "a", "x", label=label)])
    with pytest.raises(ProbeError, match="none of 1 pairs has two different answers"):
        Examples.of([pair(1, "a", "x", "x")])


def test_words_do_not_tell_the_harmless_expert_s_pairs_apart() -> None:
    pairs = demo_pairs("harmless", 100)
    declining = [" cannot help " in one.chosen or "rather not say" in one.chosen for one in pairs]
    assert len(pairs) == 100 and sum(declining) == 50
    for one, declines in zip(pairs, declining, strict=True):
        subject = one.id.split("/")[1]
        assert subject not in one.chosen and subject not in str(one.rejected)
        assert declines != ("rather not say" in str(one.rejected) or "cannot help" in str(one.rejected))
    assert demo_pairs("harmless", 100) == pairs != demo_pairs("harmless", 100, seed=1)
    assert len(demo_pairs("helpful", 7)) == 6
    with pytest.raises(ProbeError, match="expected helpful or harmless"):
        demo_pairs("honest", 10)


def write(folder: Path, tensors: dict[str, np.ndarray], name: str = "model") -> Path:
    folder.mkdir()
    save_file(
        {key: torch.tensor(value, dtype=torch.float32) for key, value in tensors.items()},
        folder / f"{name}.safetensors",
    )
    return folder


def test_changes_by_layer_are_relative_to_the_reference(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]
    ones = {name: np.ones((3, 4)) for name in names}
    before = write(tmp_path / "before", ones | {"model.embed_tokens.weight": np.ones((9, 4))})
    after = write(
        tmp_path / "after", {name: np.full((3, 4), 1 + 0.1 * layer) for layer, name in enumerate(names)}
    )
    found = measure_changes(before, after)
    assert found is not None and found.most == (2, 3)
    assert found.by_layer == pytest.approx({layer: 0.1 * layer for layer in range(4)}, abs=1e-6)
    assert measure_changes(before, before) is None
    assert signature_of(before) != signature_of(after)


def test_a_family_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'nope\.yaml' is neither a family file nor a bundled family"):
        members_of_family("nope.yaml", [], None)


def test_an_adapter_here_on_a_hub_s_model_is_told_from_another_training(tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text("name: f\nbase: org/model\nexperts: {good: {adapter: ./good, reference: base}}\n")
    (tmp_path / "good").mkdir()
    signatures = []
    for content in (b"one", b"another"):
        (tmp_path / "good" / "adapter_model.safetensors").write_bytes(content)
        probing = members_of_family(str(family), [], None)
        assert probing.folders is None
        signatures.append(probing.signature)
    signatures.append(members_of_family(str(family), ["base.revision=v2"], None).signature)
    assert len(set(signatures)) == 3 and "org/model@v2" in signatures[2]


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_s_change_is_that_of_its_product(tmp_path: Path, rslora: bool) -> None:
    rng, module = np.random.default_rng(0), "model.layers.1.self_attn.q_proj"
    weight, a, b = rng.normal(size=(6, 5)), rng.normal(size=(2, 5)), rng.normal(size=(6, 2))
    reference = write(tmp_path / "ref", {f"{module}.weight": weight, "model.layers.0.x.weight": weight})
    prefix = f"base_model.model.{module}"
    adapter = write(
        tmp_path / "lora", {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, "adapter_model"
    )
    settings = {"lora_alpha": 8, "use_rslora": rslora, "alpha_pattern": {}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    scaling = 8 / math.sqrt(2) if rslora else 4
    found = measure_changes(reference, adapter)
    assert found is not None and found.most == (1,)
    expected = scaling * np.linalg.norm(b @ a) / np.linalg.norm(weight)
    assert found.by_layer == pytest.approx({0: 0.0, 1: expected}, rel=1e-5)
