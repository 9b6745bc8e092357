"""What each member of a family holds in memory beyond the members before it, once its weights are loaded.

`python -m tests.engine.loaded FAMILY.yaml` measures a family. Without one: five experts of rank 16 on a reference of 26
million parameters, as adapters and as merged checkpoints. The composite is built as an engine builds it, and measured
before the CPU build packs its weights into kernels' own formats, where they cannot be counted.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .adapters import write_adapter, write_merged
from .checkpoints import write_checkpoint

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LARGER = dict(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
)


def own_bytes(family: Path) -> dict[str, int]:
    """Measure in a process of its own, since vLLM's parallel groups are global."""
    command = [sys.executable, "-m", "tests.engine.loaded", "--here", str(family)]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, cwd=root, check=False, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    found: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return found


def _measure(family: Path) -> dict[str, int]:
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.model_loader import base_loader, get_model

    from eft_server.engine.launcher.plan import plan
    from eft_server.family.inspection import inspect_family
    from eft_server.family.load import load_config

    torch.accelerator.empty_cache = lambda: None  # There is no accelerator; vLLM's CPU worker does the same.
    base_loader.process_weights_after_loading = lambda *_: None
    config = load_config(family)
    settings = EngineArgs(**plan(config, inspect_family(config)).options).create_engine_config()
    with set_current_vllm_config(settings), tempfile.NamedTemporaryFile() as rendezvous:
        init_distributed_environment(1, 0, f"file://{rendezvous.name}", 0, "gloo")
        initialize_model_parallel(1, 1)
        model = get_model(vllm_config=settings)
    seen: set[int] = set()
    return {name: _new_bytes(model._member(name), seen) for name in config.family.names}


def _new_bytes(member: torch.nn.Module, seen: set[int]) -> int:
    total = 0
    for tensor in (*member.parameters(), *member.buffers()):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.untyped_storage().nbytes()
    return total


def write_both(folder: Path) -> dict[str, Path]:
    """The same family twice: experts as adapters, and as checkpoints with the adapters merged in."""
    write_checkpoint(folder / "base", 0)
    reference = write_checkpoint(folder / "ref", 1, spread=0.02, **LARGER)
    for name in "abcde":
        ranks = dict.fromkeys(PROJECTIONS, 16)
        write_adapter(folder / name, reference, ord(name), ranks, spread=0.01, r=16)
        write_merged(folder / f"{name}-merged", reference, folder / name)
    families = {}
    for way, expert in {"adapters": "{{adapter: ./{}}}", "merged": "./{}-merged"}.items():
        experts = ", ".join(f"{name}: {expert.format(name)}" for name in "abcde")
        families[way] = folder / f"{way}.yaml"
        families[way].write_text(
            f"name: five\nbase: ./base\nreferences: {{ref: ./ref}}\nexperts: {{{experts}}}\n"
            "vllm: {dtype: float32, max_model_len: 256}\n"
        )
    return families


def _main(arguments: list[str]) -> None:
    if arguments[:1] == ["--here"]:
        print(json.dumps(_measure(Path(arguments[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        families = {"family": Path(arguments[0])} if arguments else write_both(Path(folder))
        for way, family in families.items():
            members = own_bytes(family)
            print(f"{way}: {sum(members.values()):,} bytes", members)


if __name__ == "__main__":
    _main(sys.argv[1:])
