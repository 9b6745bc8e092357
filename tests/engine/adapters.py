"""Small random LoRA adapters as PEFT saves them, and checkpoints with the same adapters merged in, in float32."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
}


def write_adapter(
    path: Path, reference: Path, seed: int, targets: Mapping[str, int], spread: float = 0.3, **settings: Any
) -> Path:
    """A random adapter on a checkpoint: the rank of each kind of layer that it adapts, by how its name ends."""
    stated = SETTINGS | {"target_modules": sorted(targets)} | settings
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(reference / "model.safetensors").items():
        module = name.removesuffix(".weight")
        rank = next((rank for ending, rank in targets.items() if module.endswith(f".{ending}")), None)
        if rank and name.endswith(".weight"):
            outputs, inputs = weight.shape
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                tensor = torch.randn(shape, generator=generator) * spread
                tensors[f"base_model.model.{module}.{part}.weight"] = tensor
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(stated))
    return path


def write_merged(path: Path, reference: Path, adapter: Path) -> Path:
    """The checkpoint that the adapter amounts to: W + scaling · B · A, by the definition."""
    shutil.copytree(reference, path)
    weights = load_file(path / "model.safetensors")
    for module, (a_RI, b_OR) in terms(adapter).items():
        weights[f"{module}.weight"] += b_OR @ a_RI
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def terms(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An adapter's two matrices by layer, the scaling in the second."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, a_RI in tensors.items():
        if "lora_A" in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[module] = a_RI, scaling(settings, module) * tensors[name.replace("lora_A", "lora_B")]
    return found


def scaling(settings: Mapping[str, Any], module: str) -> float:
    """What PEFT multiplies the product with; patterns go by a module's last name here."""
    leaf = module.rpartition(".")[2]
    rank = settings.get("rank_pattern", {}).get(leaf, settings["r"])
    alpha = settings.get("alpha_pattern", {}).get(leaf, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
