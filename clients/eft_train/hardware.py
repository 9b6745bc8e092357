"""Where and in which numbers a training computes, and how quiet the libraries are about it."""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

from eft_train.errors import TrainingError

__all__ = ["Hardware", "hardware_of", "prepare_libraries"]

_LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "transformers", "trl")
_DTYPES = ("auto", "float32", "bfloat16")

_LARGE = 1_000_000_000
"""From this number of parameters on, activations on a GPU are computed again instead of kept."""


@dataclass(frozen=True)
class Hardware:
    """Where a training computes.

    Attributes:
        on_cpu: Whether on the CPU.
        dtype: What it computes in: float32, or bfloat16 with weights that are learnt in float32.
        recompute: Whether activations are computed again instead of kept, which large models need.
    """

    on_cpu: bool
    dtype: str
    recompute: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As options of `TrainingArguments`, where TRL would use bfloat16 on every device."""
        return {
            "use_cpu": self.on_cpu,
            "bf16": self.dtype == "bfloat16",
            "dataloader_pin_memory": not self.on_cpu,
            "gradient_checkpointing": self.recompute,
        }


def prepare_libraries(device: str, threads: int | None) -> None:
    """Show only the libraries' errors, and choose threads and the GPU.

    Bars, logs and warnings would go between the lines of our progress. TRL refuses several visible GPUs in one process,
    so that the others are hidden.

    Raises:
        TrainingError: The device is none.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise TrainingError(f"--device {device[:80]!r}: expected auto, cpu, cuda or cuda:NUMBER")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise TrainingError(
            "WORLD_SIZE is more than 1: eft train runs in one process; start it without a launcher"
        )
    _hide_other_gpus(int(number or 0))
    os.environ["TQDM_DISABLE"] = "1"
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def _hide_other_gpus(number: int) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = str(number) if visible is None else [*visible.split(","), *[""] * number][number]
    os.environ["CUDA_VISIBLE_DEVICES"] = known


def hardware_of(device: str, dtype: str, parameters: int) -> Hardware:
    """Choose the device, and what to compute in.

    Raises:
        TrainingError: They are not there, or unknown.
    """
    import torch

    if dtype not in _DTYPES:
        raise TrainingError(f"--dtype {dtype[:80]!r}: expected {', '.join(_DTYPES)}")
    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise TrainingError(f"--device {device}: there is no such device here; expected cpu")
    on_cpu = device == "cpu" or not there
    if dtype == "auto":
        dtype = "float32" if on_cpu or not torch.cuda.is_bf16_supported() else "bfloat16"
    return Hardware(on_cpu, dtype, recompute=not on_cpu and parameters >= _LARGE)
