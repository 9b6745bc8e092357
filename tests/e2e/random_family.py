"""A family of small random checkpoints with a chat template: no hub, no training, a second to write."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools[0].function.name }}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 320
"""More ids than the tokenizer has: the rest is padding."""

POISON = 318
"""A padding id whose embedding in the expert `broken` is not a number: a prompt with it is not finite."""

FAMILY = """
name: tiny
base: ./base
references: {small: ./small}
experts: {helpful: ./helpful, harmless: ./harmless, broken: ./broken}
defaults: {weights: {helpful: 0.5, harmless: 0.5}}
aliases:
  tiny-helpful: {weights: {helpful: 1.0}, description: Only helpful.}
server: {max_n: 4, max_logprobs: 5, max_prompts: 4, max_body_bytes: 65536, body_timeout_s: 3.0, tool_parser: hermes}
vllm: {dtype: float32, max_model_len: 1024, max_num_seqs: 32, kv_cache_memory_bytes: 134217728}
"""


def write_family(folder: Path) -> Path:
    """Write the checkpoints and the family file, and return the file's path."""
    write_checkpoint(folder / "base", 0, num_hidden_layers=3, hidden_size=96, num_attention_heads=3)
    for seed, name in enumerate(("small", "helpful", "harmless", "broken"), start=1):
        write_checkpoint(folder / name, seed)
    weights = folder / "broken" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    path = folder / "family.yaml"
    path.write_text(FAMILY)
    return path


def write_checkpoint(path: Path, seed: int, **sizes: Any) -> None:
    """A random model whose logits are spread enough that greedy decoding has no near-ties."""
    write_tokenizer(path)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**(shape | sizes))).save_pretrained(path)


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer of about 300 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The quick brown fox jumps over the lazy dog. Hello world!"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
