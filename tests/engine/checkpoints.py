"""Small random checkpoints, made on the spot: any architecture that transformers can write and vLLM can read."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

WORDS = 90
"""Ordinary ids of the small tokenizer; three special ones follow."""

SPECIAL = ("<bos>", "<eos>", "<pad>")

SMALL: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=512,
)
"""Sizes that vLLM's CPU kernels take."""


def write_tokenizer(path: Path, special: tuple[str, ...] = SPECIAL) -> PreTrainedTokenizerFast:
    """One token for each printable character that fits; the same file for each member of a family."""
    characters = {chr(33 + index): index for index in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(path)
    return fast


def write_checkpoint(
    path: Path, seed: int, model_type: str = "llama", vocab_size: int = 96, spread: float = 0.3, **sizes: Any
) -> Path:
    """A random model whose logits are spread enough that greedy decoding has no near-ties."""
    write_tokenizer(path)
    config: PretrainedConfig = CONFIG_MAPPING[model_type](
        vocab_size=vocab_size,
        bos_token_id=WORDS,
        eos_token_id=WORDS + 1,
        pad_token_id=WORDS + 2,
        initializer_range=spread,
        **_sizes(model_type, sizes),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    return path


def _sizes(model_type: str, sizes: dict[str, Any]) -> dict[str, Any]:
    merged = {**SMALL, **sizes}
    if model_type == "qwen2":  # Its heads always share the hidden size evenly.
        merged.pop("head_dim")
    return merged
