"""What a step and a token cost a replica: a family's sizes on a card, as a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_server.bench.shapes import SHAPES

__all__ = ["CARDS", "FAMILIES", "Card", "ReplicaCosts", "Sizes"]

_BYTES = 2
"""Of a number in bfloat16."""


@dataclass(frozen=True)
class Sizes:
    """Sums over a family's members: a step reads all their weights, and a token lies in all their KV caches.

    Attributes:
        parameters: Weights, in numbers.
        kv_bytes: KV cache of a token.
    """

    parameters: int
    kv_bytes: int

    @classmethod
    def of(cls, members: Sequence[Mapping[str, Any]]) -> "Sizes":
        """Add members up, each given as in its config."""
        return cls(sum(map(_parameters, members)), sum(map(_kv_bytes, members)))


def _parameters(member: Mapping[str, Any]) -> int:
    hidden, layers = member["hidden_size"], member["num_hidden_layers"]
    attention = 2 * hidden * hidden + 2 * hidden * _kv_width(member)
    heads = 1 if member["tie_word_embeddings"] else 2
    per_layer = attention + 3 * hidden * member["intermediate_size"]
    return int(layers * per_layer + heads * member["vocab_size"] * hidden)


def _kv_bytes(member: Mapping[str, Any]) -> int:
    return int(2 * _BYTES * member["num_hidden_layers"] * _kv_width(member))


def _kv_width(member: Mapping[str, Any]) -> int:
    return int(member["hidden_size"] // member["num_attention_heads"] * member["num_key_value_heads"])


@dataclass(frozen=True)
class Card:
    """A GPU by its published numbers, and what of them a step is assumed to reach.

    Attributes:
        memory_bytes: What vLLM may use for weights, activations and KV cache.
        bandwidth: Bytes a second.
        flops: Operations a second.
        step_s: What a step takes besides: scheduler, launches and sampling.
    """

    memory_bytes: float
    bandwidth: float
    flops: float
    step_s: float


CARDS: Mapping[str, Card] = {
    # 80 GB, 3.35 TB/s, 990 TFLOP/s in bfloat16: nine tenths, seven tenths and half of them.
    "h100": Card(memory_bytes=72e9, bandwidth=0.7 * 3.35e12, flops=0.5 * 990e12, step_s=0.005),
    # 48 GB, 0.864 TB/s, 362 TFLOP/s.
    "l40s": Card(memory_bytes=43.2e9, bandwidth=0.7 * 0.864e12, flops=0.5 * 362e12, step_s=0.005),
}

FAMILIES: Mapping[str, Sizes] = {
    **{
        name.removesuffix("-shapes"): Sizes.of((base, small, small)) for name, (base, small) in SHAPES.items()
    },
    **{f"{name.removesuffix('-shapes')}/base": Sizes.of((base,)) for name, (base, _) in SHAPES.items()},
}
"""Families of one reference and one expert, and their bases by themselves."""

_ACTIVATIONS = 4e9


@dataclass(frozen=True)
class ReplicaCosts:
    """A family on a card.

    Attributes:
        sizes: The family's.
        card: The card.
        batched_tokens: How many tokens a step has at most.
        sequences: How many requests a step has at most.
    """

    sizes: Sizes
    card: Card
    batched_tokens: int = 8192
    sequences: int = 256

    @property
    def kv_tokens(self) -> int:
        """How many tokens the KV cache holds."""
        room = self.card.memory_bytes - _ACTIVATIONS - _BYTES * self.sizes.parameters
        return max(0, int(room / self.sizes.kv_bytes))

    def step_s(self, rows: int, prefill: int, context: int) -> float:
        """How long a step takes.

        Args:
            rows: Requests that decode.
            prefill: Tokens of prompts.
            context: Tokens in the KV cache that the decoding requests read.
        """
        read = _BYTES * self.sizes.parameters + self.sizes.kv_bytes * context
        computed = 2 * self.sizes.parameters * (rows + prefill)
        return self.card.step_s + read / self.card.bandwidth + computed / self.card.flops
