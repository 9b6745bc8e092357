"""A kernel of Triton's in a capture; a program, since Triton decides on its interpreter as it is imported."""

from typing import Any

import torch
import triton
import triton.language as tl
from graphs.recorder import CUDAGraph, graph
from graphs.replacements import record_triton


@triton.jit  # type: ignore[untyped-decorator]
def _add_kernel(out_ptr: Any, x_ptr: Any, count_ptr: Any, value: Any, BLOCK: tl.constexpr) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < tl.load(count_ptr)
    tl.store(out_ptr + index, tl.load(x_ptr + index, mask=inside) + value, mask=inside)


def main() -> None:
    """Capture the kernel between two of torch's, and replay it on other numbers of elements and other inputs."""
    record_triton()
    x, count = torch.zeros(8), torch.tensor([8], dtype=torch.int32)
    captured = CUDAGraph()
    with graph(captured):
        out = torch.zeros(8)
        _add_kernel[(2,)](out, x * 2, count, 1.0, BLOCK=4)
        result = out * 10
    assert len(captured) == 4, "the zeros, the kernel and two products"
    assert result.isnan().all()
    x.copy_(torch.arange(8.0))
    count.fill_(6)
    captured.replay()
    assert result.tolist() == [10.0, 30.0, 50.0, 70.0, 90.0, 110.0, 0.0, 0.0]
    x.fill_(2)
    captured.replay()
    assert result.tolist() == [50.0] * 6 + [0.0] * 2


if __name__ == "__main__":
    main()
