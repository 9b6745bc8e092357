"""Batched decoding of a sum of models in plain transformers: the demo's own yardstick, with no server in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

# Shape suffixes: R rows, T prompt tokens, V vocabulary.


@dataclass(frozen=True)
class Blend:
    """Models and the coefficient of each one's logits."""

    terms: tuple[tuple[LlamaForCausalLM, float], ...]


class _Reader:
    """One model and its cache, reading the rows' tokens as they come."""

    def __init__(self, model: LlamaForCausalLM, coefficient: float) -> None:
        self._model, self._coefficient, self._cache = model, coefficient, DynamicCache(config=model.config)

    def read(self, ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        """The model's share of the next token's logits, after these further tokens."""
        positions_RT = (mask_RT.cumsum(-1) - 1).clamp(min=0)[:, -ids_RT.shape[1] :]
        output = self._model(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            position_ids=positions_RT,
            past_key_values=self._cache,
            logits_to_keep=1,
        )
        share_RV: Tensor = output.logits[:, -1].float() * self._coefficient
        return share_RV


@torch.inference_mode()
def decode(
    blend: Blend,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    limit: int,
    sampler: torch.Generator | None,
) -> list[list[int]]:
    """Continue each prompt until the end token (kept) or for ``limit`` tokens.

    With a ``sampler`` tokens are drawn at temperature 1, else the likeliest is taken.
    """
    ids_RT, mask_RT = _pad_left(prompts, end)
    readers = [_Reader(model, coefficient) for model, coefficient in blend.terms if coefficient]
    going_R = torch.ones(len(prompts), dtype=torch.bool)
    columns: list[Tensor] = []
    while len(columns) < limit and going_R.any():
        logits_RV = torch.stack([reader.read(ids_RT, mask_RT) for reader in readers]).sum(0)
        next_R = _choose(logits_RV, sampler)
        columns.append(torch.where(going_R, next_R, -1))
        going_R &= next_R != end
        ids_RT, mask_RT = next_R[:, None], torch.nn.functional.pad(mask_RT, (0, 1), value=1)
    return [[token for token in row if token >= 0] for row in torch.stack(columns, -1).tolist()]


def _choose(logits_RV: Tensor, sampler: torch.Generator | None) -> Tensor:
    """The next token of each row."""
    if sampler is None:
        return logits_RV.argmax(-1)
    return torch.multinomial(logits_RV.softmax(-1), 1, generator=sampler)[:, 0]


def _pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of the prompts, flush right."""
    width = max(map(len, prompts))
    ids_RT = torch.tensor([[filler] * (width - len(p)) + list(p) for p in prompts])
    mask_RT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids_RT, mask_RT
