"""Small quantised checkpoints, packed by hand, each beside the float checkpoint that it stands for."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

INT8 = {
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    },
}
INT4 = {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}}


GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns goes to which four bits of a word."""


def quantise(path: Path, original: Path, bits: int, method: str = "compressed-tensors") -> Path:
    """Rewrite a checkpoint's projections as compressed-tensors, GPTQ or AWQ do.

    `path` gets the packed checkpoint, `path`-float the same numbers unpacked.
    """
    unpacked = path.with_name(f"{path.name}-float")
    for folder in (path, unpacked):
        shutil.copytree(original, folder)
    floats, packed = load_file(original / "model.safetensors"), {}
    for name, weight in list(floats.items()):
        if name.endswith("_proj.weight"):
            integers, scales = _rounded(weight, bits)
            groups = scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
            floats[name] = integers * groups
            store = {"gptq": _as_gptq, "awq": _as_awq}.get(method)
            module = name.removesuffix(".weight")
            packed |= store(module, integers, scales) if store else _as_stored(module, integers, scales, bits)
        else:
            packed[name] = weight
    save_file(floats, unpacked / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": settings(bits, method)}))
    return path


def settings(bits: int, method: str = "compressed-tensors") -> dict[str, Any]:
    """The entry in the checkpoint's config."""
    if method == "gptq":
        return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    if method == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {
        "quant_method": "compressed-tensors",
        "format": {8: "int-quantized", 4: "pack-quantized"}[bits],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **{8: INT8, 4: INT4}[bits]}},
        "ignore": ["lm_head"],
    }


def _rounded(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of the weight's shape, and scales by output (8 bits) or by group of 32 inputs (4 bits)."""
    grouped = weight if bits == 8 else weight.unflatten(1, (-1, 32))
    limit = 2 ** (bits - 1) - 1
    scales = grouped.abs().amax(dim=-1, keepdim=True) / limit
    integers = (grouped / scales).round().clamp(-limit - 1, limit).reshape(weight.shape)
    return integers, scales.reshape(len(weight), -1)


def _as_stored(
    module: str, integers: torch.Tensor, scales: torch.Tensor, bits: int
) -> dict[str, torch.Tensor]:
    stored = {f"{module}.weight_scale": scales.contiguous()}
    if bits == 8:
        return stored | {f"{module}.weight": integers.to(torch.int8)}
    packed = _words((integers.to(torch.int64) + 8).unflatten(1, (-1, 8)))
    shape = torch.tensor(integers.shape, dtype=torch.int64)
    return stored | {f"{module}.weight_packed": packed, f"{module}.weight_shape": shape}


def _as_gptq(module: str, integers: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight inputs of an output in a word; zero points are stored less one."""
    rows, groups = integers.shape[1], scales.shape[1]
    return {
        f"{module}.qweight": _words((integers.to(torch.int64) + 8).T.unflatten(0, (-1, 8)).movedim(1, -1)),
        f"{module}.qzeros": _words(torch.full((groups, len(integers) // 8, 8), 7)),
        f"{module}.scales": scales.T.contiguous(),
        f"{module}.g_idx": (torch.arange(rows) // GROUP).to(torch.int32),
    }


def _as_awq(module: str, integers: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight outputs of an input in a word, in an order of their own."""
    columns = (integers.to(torch.int64) + 8).T.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)]
    return {
        f"{module}.qweight": _words(columns),
        f"{module}.qzeros": _words(torch.full((scales.shape[1], len(integers) // 8, 8), 8)),
        f"{module}.scales": scales.T.contiguous(),
    }


def _words(nibbles: torch.Tensor) -> torch.Tensor:
    """Eight numbers of four bits, the last dimension, as one signed integer, the first lowest."""
    words = (nibbles << (4 * torch.arange(8))).sum(dim=-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


LowRanks = dict[str, tuple[torch.Tensor, torch.Tensor]]


def round_inputs(model: nn.Module, low_rank: LowRanks | None = None) -> None:
    """Make a float model round its projections' inputs to 8 bits a token, as the scheme's kernels do.

    What an adapter adds to a projection reads the inputs as they are.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith("_proj"):
            module.forward = _rounded_product(module, (low_rank or {}).get(name))  # type: ignore[method-assign]


def _rounded_product(module: nn.Linear, term: tuple[torch.Tensor, torch.Tensor] | None) -> Any:
    def product(x: torch.Tensor) -> torch.Tensor:
        scales = x.abs().amax(dim=-1, keepdim=True) / 127
        rounded = (x / scales).round().clamp(-128, 127) * scales
        result = nn.functional.linear(rounded, module.weight, module.bias)
        return result if term is None else result + (x @ term[0].T) @ term[1].T

    return product
