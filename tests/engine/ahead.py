"""The composite with code that is compiled ahead of time, as on GPUs: `python -m tests.engine.ahead FAMILY.yaml`.

vLLM's CPU platform turns the mode VLLM_COMPILE into DYNAMO_TRACE_ONCE, which keeps no such code. Here the composite is
built in that mode all the same, and runs without an engine. Its attention layers answer with their queries.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch


def compiled_ahead(family: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """Run in a process of its own, since vLLM's parallel groups are global.

    Returns:
        By member: `apart`, how far compiled code is from eager code; `attended`, the layers that compiled code asked;
        `loaded`, whether it came from the cache.
    """
    command = [sys.executable, "-m", "tests.engine.ahead", str(family)]
    environment = os.environ | {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_USE_AOT_COMPILE": "1",
    }
    root = Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, cwd=root, check=False, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    found: dict[str, dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def _run(family: Path) -> dict[str, dict[str, Any]]:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.model_loader import get_model

    attended: list[str] = []
    _without_an_engine(attended)
    settings = _settings(family)
    with set_current_vllm_config(settings), tempfile.NamedTemporaryFile() as rendezvous:
        init_distributed_environment(1, 0, f"file://{rendezvous.name}", 0, "gloo")
        initialize_model_parallel(1, 1)
        model: Any = get_model(vllm_config=settings)
        ids, positions = torch.arange(3, 11), torch.arange(8)
        found: dict[str, dict[str, Any]] = {}
        with torch.inference_mode(), set_forward_context(None, settings, num_tokens=len(ids)):
            for name in model.names:
                inner = model._member(name).model
                eager = type(inner).forward(inner, ids, positions, None)
                attended.clear()
                compiled = model.run_member(name, ids, positions)
                found[name] = {
                    "apart": float((compiled - eager).abs().max()),
                    "attended": list(attended),
                    "loaded": bool(inner.was_aot_compile_fn_loaded_from_disk),
                }
    return found


def _without_an_engine(attended: list[str]) -> None:
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    def answer(_impl: Any, layer: Any, query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        attended.append(layer.layer_name)
        output: torch.Tensor = options["output"] if "output" in options else rest[4]
        return output.copy_(query.view_as(output))

    CPUAttentionBackendImpl.forward = answer  # type: ignore[method-assign]
    torch.accelerator.empty_cache = lambda: None  # There is no accelerator; vLLM's CPU worker does the same.
    # It looks for kernels by names that the CPU build has not; Inductor has a pass of its own for what it mends.
    FixFunctionalizationPass.__call__ = lambda *_: None  # type: ignore[method-assign]


def _settings(family: Path) -> Any:
    """The engine's settings, in the mode that GPUs run by default."""
    from vllm import EngineArgs
    from vllm.config import CompilationMode

    from eft_server.engine.launcher.plan import plan
    from eft_server.family.inspection import inspect_family
    from eft_server.family.load import load_config

    config = load_config(str(family), ["vllm.enforce_eager=false"])
    settings = EngineArgs(**plan(config, inspect_family(config)).options).create_engine_config()
    compilation = settings.compilation_config
    compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "inductor"
    compilation.splitting_ops, compilation.compile_sizes = [], []
    for name, value in vars(compilation.pass_config).items():
        if value is True:
            setattr(compilation.pass_config, name, False)  # They fuse GPUs' kernels.
    return settings


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]))))
