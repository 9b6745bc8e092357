"""How a request's coefficients reach the rows of its logits: bit-cast, beside the hidden states.

vLLM picks rows of the hidden states for sampling, for draft verification and for prompt log-probabilities, in
whatever order it likes. Columns that ride along arrive with the right row every time.

Shape suffixes: T tokens, R rows, M members, H hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eft_server.engine.manifest import KEY


def coefficients_of(extra_args: Mapping[str, Any] | None, defaults: Sequence[float]) -> tuple[float, ...]:
    """Read a request's coefficients out of its `SamplingParams.extra_args`.

    The server validates before it sends. What is malformed all the same must not pass for another request's
    setting and must not stop the engine: it becomes NaN, and the request fails as every non-finite one does.
    """
    vector = (extra_args or {}).get(KEY)
    if vector is None:
        return tuple(defaults)
    try:
        values = tuple(float(value) for value in vector)
    except (TypeError, ValueError):
        values = ()
    return values if len(values) == len(defaults) else (float("nan"),) * len(defaults)


def attach(hidden_M: Sequence[torch.Tensor], coefficients_TM: torch.Tensor) -> torch.Tensor:
    """Put the members' hidden states, each of shape (T, H_m), and the float32 coefficients side by side."""
    riders = [hidden_TH.to(hidden_M[0].dtype) for hidden_TH in hidden_M]
    return torch.cat([*riders, coefficients_TM.view(hidden_M[0].dtype)], dim=-1)


def detach(columns_RC: torch.Tensor, sizes_M: Sequence[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Undo `attach` on any choice of rows: the members' hidden states and float32 coefficients (R, M)."""
    per_float = torch.float32.itemsize // columns_RC.dtype.itemsize
    parts = columns_RC.split([*sizes_M, len(sizes_M) * per_float], dim=-1)
    return parts[:-1], parts[-1].contiguous().view(torch.float32)
