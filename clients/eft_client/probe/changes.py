"""How much each layer's parameters changed from the reference to the expert, from checkpoints in local folders."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Changes", "measure_changes", "signature_of"]

MOST = 5
"""How many layers Marks et al. took."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_PARTS = (".lora_A.weight", ".lora_B.weight")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Changes:
    """By layer, ‖expert − reference‖ as a share of ‖reference‖, in Frobenius' norm over the layer's tensors.

    Attributes:
        by_layer: the share.
        most: the layers with the largest.
        meaning: what it is, in a line.
    """

    by_layer: Mapping[int, float]
    most: tuple[int, ...]
    meaning: str = "‖expert − reference‖ as a share of ‖reference‖, over all tensors of the layer"


def measure_changes(reference: Path, expert: Path) -> Changes | None:
    """Compare two checkpoints, or a LoRA adapter with the checkpoint that it is on.

    Args:
        reference: The reference's folder.
        expert: The expert's, or the adapter's.

    Returns:
        None where a folder has no safetensors or the layers have other names.
    """
    with ExitStack() as files:
        before, after = _tensors(reference, files), _tensors(expert, files)
        if not before or not after:
            return None
        adapter = expert / "adapter_config.json"
        pairs = _low_rank(after, json.loads(adapter.read_text())) if adapter.is_file() else None
        changed, whole = defaultdict[int, float](float), defaultdict[int, float](float)
        for name, tensor in before.items():
            if layer := _LAYER.search(name):
                old = tensor().float()
                whole[int(layer[1])] += float(old.square().sum())
                if pairs is None and name in after:
                    changed[int(layer[1])] += float((after[name]().float() - old).square().sum())
        for layer_of, square in pairs or ():
            changed[layer_of] += square
    found = {layer: math.sqrt(changed[layer] / whole[layer]) for layer in sorted(whole) if whole[layer]}
    if not found or not any(found.values()):
        return None
    count = min(MOST, max(1, len(found) // 2))
    return Changes(found, tuple(sorted(sorted(found, key=lambda layer: -found[layer])[:count])))


def signature_of(*folders: Path) -> str:
    """Names, sizes and times of the weights' files: other training leaves others."""
    stats = [
        f"{folder.name}/{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for folder in folders
        for path in sorted(folder.glob("*.safetensors"))
    ]
    return "; ".join(stats)


def _tensors(folder: Path, files: ExitStack) -> dict[str, Callable[[], "Tensor"]]:
    """Readers of a folder's tensors, by name."""
    from safetensors import safe_open

    found = dict[str, Callable[[], "Tensor"]]()
    for path in sorted(folder.glob("*.safetensors")):
        file = files.enter_context(safe_open(path, framework="pt"))
        found |= {name: _reader(file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return found


def _reader(file: Any, name: str) -> Callable[[], "Tensor"]:
    def read() -> "Tensor":
        tensor: Tensor = file.get_tensor(name)
        return tensor

    return read


def _low_rank(
    tensors: Mapping[str, Callable[[], "Tensor"]], settings: Mapping[str, Any]
) -> Iterator[tuple[int, float]]:
    """The layer and ‖scaling · B A‖² of each term: the trace of (BᵀB)(AAᵀ), so that B A is never built."""
    for name, read in tensors.items():
        layer = _LAYER.search(name)
        if layer is None or not name.endswith(_PARTS[0]):
            continue
        module = name.removesuffix(_PARTS[0])
        a, b = read().float(), tensors[module + _PARTS[1]]().float()
        scaling = _scaling(settings, module.removeprefix(_PREFIX), a.shape[0])
        yield int(layer[1]), scaling**2 * float(((b.T @ b) * (a @ a.T)).sum())


def _scaling(settings: Mapping[str, Any], module: str, rank: int) -> float:
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?{key}", module)),
        settings["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
