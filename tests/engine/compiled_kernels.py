"""Compiles every kernel of ours for an H100, for which no GPU is needed, instead of running it.

Prints one line a kernel: its name and how many loads and stores of 16 bytes its program has.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from eft_server.engine.worker.member_inputs import Inputs
from eft_server.engine.worker.v2 import report_kernels, runner
from eft_server.engine.worker.v2.blending import Blending, Logits, Rows, SharedIds, score
from eft_server.engine.worker.v2.graphs import GraphBatch, GraphInputs, GraphPart

CPU = torch.device("cpu")
SIZE = 152_064


def compile_only() -> None:
    """Take the place of the driver and of each launch."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        ptx = launch(self, *args, grid=grid, warmup=True, **options).asm["ptx"]
        print(self.__name__, ptx.count("ld.global.v4"), ptx.count("st.global.v4"))

    JITFunction.run = run
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda _device: 0,
        )
    )


def launch_all() -> None:
    """Plain, filtered, scored and reported rows of three members, and the vectors of a step."""
    logits_M = [torch.empty(2, size, dtype=torch.bfloat16) for size in (SIZE, SIZE - 128, SIZE - 128)]
    vocabulary = SharedIds.of(SIZE, range(SIZE - 399, SIZE), CPU)
    vectors_RW = torch.zeros(2, 8)
    plain = Blending(vocabulary, vectors_RW)
    plain.add(*(Logits(member, logits_RV) for member, logits_RV in enumerate(logits_M)))
    plain.finish()
    rows = Rows.of([1], 2, CPU)
    filtered = Blending(vocabulary, vectors_RW, rows)
    filtered.add(Logits(0, logits_M[0]))
    filtered.add(Logits(2, logits_M[2], rows))
    filtered.finish()
    logits = [Logits(member, logits_RV) for member, logits_RV in enumerate(logits_M)]
    score(vocabulary, logits, vectors_RW, torch.zeros(2, dtype=torch.int64))
    slots, starts = torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    report_kernels.compare(torch.empty(2, SIZE), slots, torch.empty(2, SIZE))
    fill_graphs()
    runner._spread_kernel[(2,)](vectors_RW, vectors_RW, slots, starts, 8, WIDTH=8, BLOCK=64)


def fill_graphs() -> None:
    """What two members read in graphs, of one request each."""
    inputs = Inputs([SIZE - 1, SIZE - 129], 16, CPU)
    cache = SimpleNamespace(block_size=16)
    group = SimpleNamespace(kv_cache_group_id=0, kv_cache_spec=cache)
    tables = SimpleNamespace(
        max_num_reqs=4, block_sizes=[16], input_block_tables=[torch.zeros(4, 8, dtype=torch.int32)]
    )
    attention: Any = {name: SimpleNamespace(groups=[group]) for name in ("base", "small")}
    offsets = torch.zeros(4, 2, dtype=torch.int32)
    graphs = GraphInputs(
        SimpleNamespace(inputs=inputs), attention, cast(Any, tables), offsets, cast(Any, None)
    )
    one = np.ones(1, dtype=np.int32)
    shape = BatchExecutionDescriptor(CUDAGraphMode.FULL, 2, 2, 1)
    parts = [GraphPart(member, one * 0, one, one, 1, shape) for member in range(2)]
    positions, starts = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    lengths = torch.ones(1, dtype=torch.int32)
    for owned in (None, [lengths]):
        graphs.fill(
            parts,
            GraphBatch(positions, starts[:1], positions, starts, lengths, tables.input_block_tables, owned),
        )


if __name__ == "__main__":
    compile_only()
    launch_all()
