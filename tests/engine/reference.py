"""The composite in plain transformers, float32, one token at a time and without a cache: slow and independent."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


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

    def logits(self, tokens: Sequence[int], coefficients: Sequence[float]) -> torch.Tensor:
        """(T, V): position t's row is for the token after tokens[t]."""
        total = torch.zeros(len(tokens), self.vocab_size)
        for member, coefficient in enumerate(coefficients):
            if coefficient:
                logits = self._member_logits(member, tuple(tokens))
                width = min(self.vocab_size, logits.shape[-1])
                total[:, :width] += coefficient * logits[:, :width]
        if list(coefficients) != [1.0] + [0.0] * (len(coefficients) - 1):
            total[:, self.shared :] = -torch.inf
        return total

    def logprobs(self, tokens: Sequence[int], coefficients: Sequence[float]) -> torch.Tensor:
        """The same, normalised."""
        return self.logits(tokens, coefficients).log_softmax(-1)

    def greedy(self, prompt: Sequence[int], coefficients: Sequence[float], count: int) -> list[int]:
        """The `count` tokens that greedy decoding appends."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens, coefficients)[-1].argmax()))
        return tokens[len(prompt) :]
