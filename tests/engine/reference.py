"""The composite in plain transformers, float32, one token at a time and without a cache: slow and independent."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import AutoModelForCausalLM

Text: TypeAlias = Sequence[int] | Sequence[Sequence[int]]
"""Tokens that all members read, or each member's own."""


def continued(text: Text, tokens: Sequence[int]) -> Text:
    """A text with tokens behind it, behind every member's where they have their own."""
    if isinstance(text[0], Sequence):
        return [[*own, *tokens] for own in text]
    return [*text, *tokens]


class Reference:
    """Members, the base first, of a family whose ids from `shared` up are not everybody's."""

    def __init__(self, checkpoints: Sequence[Path], vocab_size: int, shared: int) -> None:
        torch.set_num_threads(1)  # The models are tiny, and the engine needs the other cores.
        self.models = [
            AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            for path in checkpoints
        ]
        self.vocab_size = vocab_size
        self.shared = shared
        self._member_logits = lru_cache(maxsize=4096)(self._compute)

    @torch.inference_mode()
    def _compute(self, member: int, tokens: tuple[int, ...]) -> torch.Tensor:
        return self.models[member](torch.tensor([tokens])).logits[0].float()

    def logits(self, text: Text, vector: Sequence[float]) -> torch.Tensor:
        """(T, V): position t's row is for the token after text[t]. A vector may have a filter behind it.

        Texts of the members' own end together; there are as many rows as the shortest has tokens.
        """
        count = len(self.models)
        tokens = text if isinstance(text[0], Sequence) else [text] * count
        total = self._combined(tokens, vector[:count])
        if len(vector) == count or vector[-2] == 0:
            return total
        members = [self._shared_logprobs(tokens, member) for member in range(count)]
        delta = sum(c * row for c, row in zip(vector[count:-2], members, strict=True) if c)
        rows = []
        for position, row in enumerate(total):
            row[self.shared :] = -torch.inf
            judge = row if vector[-2] == 1 else members[0][position]
            inside = nucleus(judge.tolist(), vector[-1])
            if vector[-2] == 1:
                rows.append(torch.where(inside, row + delta[position].nan_to_num(nan=-torch.inf), row))
            else:
                rows.append(torch.where(inside, row, -torch.inf))
        return torch.stack(rows)

    def _rows(self, tokens: Sequence[Sequence[int]], member: int) -> torch.Tensor:
        return self._member_logits(member, tuple(tokens[member]))[-min(map(len, tokens)) :]

    def _shared_logprobs(self, tokens: Sequence[Sequence[int]], member: int) -> torch.Tensor:
        own = self._rows(tokens, member)
        logits = torch.full((len(own), self.vocab_size), -torch.inf)
        logits[:, : self.shared] = own[:, : self.shared]
        return logits.log_softmax(-1)

    def _combined(self, tokens: Sequence[Sequence[int]], coefficients: Sequence[float]) -> torch.Tensor:
        total = torch.zeros(min(map(len, tokens)), self.vocab_size)
        for member, coefficient in enumerate(coefficients):
            if coefficient:
                logits = self._rows(tokens, member)
                width = min(self.vocab_size, logits.shape[-1])
                total[:, :width] += coefficient * logits[:, :width]
        if list(coefficients) != [1.0] + [0.0] * (len(coefficients) - 1):
            total[:, self.shared :] = -torch.inf
        return total

    def logprobs(self, text: Text, vector: Sequence[float]) -> torch.Tensor:
        """The same, normalised."""
        return self.logits(text, vector).log_softmax(-1)

    def greedy(self, prompt: Text, vector: Sequence[float], count: int) -> list[int]:
        """The `count` tokens that greedy decoding appends."""
        tokens: list[int] = []
        for _ in range(count):
            tokens.append(int(self.logits(continued(prompt, tokens), vector)[-1].argmax()))
        return tokens


def nucleus(logits: Sequence[float], top_p: float) -> torch.Tensor:
    """Token by token, the likeliest first, until they hold top_p: bool (V,)."""
    weights = [math.exp(value) for value in logits]
    inside, held = [False] * len(weights), 0.0
    for token in sorted(range(len(weights)), key=lambda index: -weights[index]):
        if held / sum(weights) >= top_p and any(inside):
            break
        inside[token], held = True, held + weights[token]
    return torch.tensor(inside)
