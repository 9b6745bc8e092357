"""Families of real shapes without weights: only for timings, where no model hub is available.

The configs are the published ones; the tokenizer has as many ids, each a separate word; vLLM fills the weights with
random numbers (`load_format: dummy`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENS = 151_643
"""Number of ordinary ids in Qwen2.5's tokenizer; the models' vocabularies are padded to different sizes beyond that."""

_SMALLEST = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
_SEVEN = {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}
_FOURTEEN = {
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}

#: Name -> the shape of the base, and that of the reference and the expert.
SHAPES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "qwen25-7b-shapes": (_SEVEN, _SMALLEST),
    "qwen25-14b-shapes": (_FOURTEEN, _SEVEN),
}

_FAMILY = """\
name: {name}
base: ./base
references: {{small: ./small}}
experts: {{expert: ./expert}}
vllm: {{load_format: dummy, dtype: bfloat16, max_model_len: 2048, max_num_seqs: 128, kv_cache_memory_bytes: 4294967296}}
"""


def write_family(name: str, folder: Path) -> Path:
    """Write the configs and tokenizers of a family of `SHAPES` to a folder, unless they exist; return its file."""
    family = folder / f"{name}.yaml"
    if not family.exists():
        base, small = SHAPES[name]
        for member, shape in {"base": base, "small": small, "expert": small}.items():
            _write_member(folder / member, shape)
        family.write_text(_FAMILY.format(name=name))
    return family


def _write_member(folder: Path, shape: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    words = Tokenizer(models.WordLevel({f"t{key}": key for key in range(TOKENS)}, unk_token="t1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", unk_token="t1").save_pretrained(folder)
