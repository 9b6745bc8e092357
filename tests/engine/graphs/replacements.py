"""What torch and vLLM's CPU platform have to be told for vLLM's graphs to be captured and replayed without a card.

Each function here stands for something that a GPU's platform has and the CPU's has not. Whatever is not replaced is
vLLM's own: the managers of graphs, their wrappers, pools, buffers and dispatch, and the splitting of compiled models.
"""

from collections.abc import Callable
from typing import Any

import torch

from .recorder import CUDAGraph, graph, new_pool, refuse, remade, weakly

_KEPT = ("mode", "backend", "cudagraph_capture_sizes", "ir_enable_torch_wrap")


def install() -> None:
    """Put everything in place, in a process that is to start one engine; before vLLM's configuration is made."""
    _torch()
    _hidden_waits()
    _platform()
    _attention()
    _worker()
    record_triton()
    _compiled_pieces()


def in_capture() -> bool:
    """Tell whether a model's own code is being recorded, and not a kernel run for a recording."""
    return CUDAGraph.capturing is not None and torch._C._len_torch_dispatch_stack() > 0


def _torch() -> None:
    import vllm.v1.worker.cpu.shm  # noqa: F401  (its stand-ins for streams come first)
    from vllm.utils import torch_utils

    cuda: Any = torch.cuda
    cuda.CUDAGraph = CUDAGraph
    cuda.graph = graph
    cuda.graph_pool_handle = new_pool
    cuda.is_current_stream_capturing = lambda: CUDAGraph.capturing is not None
    # `weak_ref_tensors`, which others have imported by name, looks this up.
    torch_utils.weak_ref_tensor = lambda item: weakly(item) if isinstance(item, torch.Tensor) else item


def _hidden_waits() -> None:
    """On the CPU these do not reach the dispatcher."""
    for owner, name in [
        (torch.Tensor, "tolist"),
        (torch.Tensor, "numpy"),
        (torch.Tensor, "__array__"),
        (torch.Tensor, "cpu"),
        (torch.cuda, "synchronize"),
        (torch.accelerator, "synchronize"),
    ]:
        setattr(owner, name, _refused_in_a_capture(getattr(owner, name), name))


def _refused_in_a_capture(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        if in_capture():
            refuse(name)
        return function(*args, **kwargs)

    return checked


def _platform() -> None:
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.platforms.cpu import CpuPlatform

    platform: Any = CpuPlatform
    check: Any = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        config = vllm_config.compilation_config
        kept = {name: getattr(config, name) for name in _KEPT}
        check(cls, vllm_config)
        vars(config).update(kept)
        # Runs each kernel once, for its compiler's sake; Triton's interpreter does not know all of them.
        vllm_config.kernel_config.enable_jit_warmup = False
        for name, value in vars(config.pass_config).items():
            if value is True:  # Fusions of CUDA's kernels.
                setattr(config.pass_config, name, False)

    # A pass over Inductor's graphs that saves copies, and asks for kernels of CUDA's by name.
    FixFunctionalizationPass.__call__ = lambda self, graph: None
    platform.check_and_update_config = classmethod(check_and_update_config)
    platform.support_static_graph_mode = classmethod(lambda cls: True)
    platform.graph_pool_handle = lambda self: new_pool()
    platform.get_static_graph_wrapper_cls = classmethod(
        lambda cls: "vllm.compilation.cuda_graph.CUDAGraphWrapper"
    )


def _attention() -> None:
    """CPU attention takes a graph's padding: requests of query length and sequence length 0.

    Its schedule is made on the host from lengths, in each step. A replay would read that of the capture, which is no
    fault of a GPU's; so it is made anew from where the lengths lie.
    """
    from vllm import _custom_ops
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    CPUAttentionMetadataBuilder._cudagraph_support = AttentionCGSupport.ALWAYS
    scheduled = _custom_ops.cpu_attn_get_scheduler_metadata
    _custom_ops.cpu_attn_get_scheduler_metadata = lambda **kwargs: remade(scheduled, **kwargs)


def _worker() -> None:
    """Have the worker do what a GPU's does at its start: profile with throw-away graphs, warm up, capture."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.worker import gpu_worker
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.workspace import init_workspace_manager

    worker: Any = CPUWorker
    init_device, available = worker.init_device, worker.determine_available_memory

    def init_device_and_workspaces(self: Any) -> None:
        init_workspace_manager(torch.device("cpu"), 1)
        init_device(self)

    def determine_available_memory(self: Any) -> int:
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.profile_run()
        self.model_runner.profile_cudagraph_memory()
        return int(available(self))

    worker._should_warm_up_model = lambda self: False  # It has run already.
    worker.init_device = init_device_and_workspaces
    worker.determine_available_memory = determine_available_memory
    gpu_worker.kernel_warmup = lambda worker: None  # Of CUDA's libraries.
    worker.compile_or_warm_up_model = gpu_worker.Worker.compile_or_warm_up_model


def record_triton() -> None:
    """Record what Triton's interpreter launches: no calls of the dispatcher."""
    from triton.runtime.interpreter import GridExecutor

    GridExecutor.__call__ = _recorded_whole(GridExecutor.__call__)


def _compiled_pieces() -> None:
    """Inductor's kernels are no calls of the dispatcher either: a piece of a model is one kernel."""
    from vllm.compilation.piecewise_backend import PiecewiseBackend

    piece = PiecewiseBackend.__call__
    whole = _recorded_whole(piece)

    def call(self: Any, *args: Any) -> Any:
        return (piece if self.compilation_config.backend == "eager" else whole)(self, *args)

    PiecewiseBackend.__call__ = call


def _recorded_whole(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not in_capture():
            return function(*args, **kwargs)
        assert CUDAGraph.capturing is not None
        return CUDAGraph.capturing.run(function, args, kwargs, writes=True)

    return call
