"""Pre-training, as a short loop in plain torch: TRL has no trainer for it, nor Muon.

Shape suffixes: B batch rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.training.schedule import Progress, Schedule


def pretrain(
    model: LlamaForCausalLM, rows: Iterator[list[int]], schedule: Schedule, *, progress: Progress
) -> None:
    """Train a base model in place to predict the next token of rows of equal length, as ``pack`` makes them."""

    def loss() -> Tensor:
        ids_BT = torch.tensor(list(islice(rows, schedule.rows)), device=model.device)
        logits_BTV = _logits(model, ids_BT)
        return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())

    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    optimisers: list[Optimizer] = [
        Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    _train(model, loss, optimisers, schedule, progress)


def _train(
    model: LlamaForCausalLM,
    loss: Callable[[], Tensor],
    optimisers: Sequence[Optimizer],
    schedule: Schedule,
    progress: Progress,
) -> None:
    """Take the schedule's steps, each on a fresh loss."""
    model.train()
    for step in range(schedule.steps):
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * schedule.factor(step)
            optimiser.step()
            optimiser.zero_grad()
        progress(step + 1, value.item())
    model.eval()


def _logits(model: LlamaForCausalLM, ids_BT: Tensor) -> Tensor:
    """The model's logits in float32, computed in bfloat16 where autocast allows: twice as fast, or more."""
    with torch.autocast(model.device.type, torch.bfloat16):
        logits_BTV: Tensor = model(input_ids=ids_BT).logits
    return logits_BTV.float()


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, width: int) -> Iterator[list[int]]:
    """Tokenise texts, one after the other, and cut the stream of tokens into rows of equal width."""
    stream, pending = iter(texts), list[int]()
    while chunk := list(islice(stream, 512)):
        for ids in tokenizer(chunk, add_special_tokens=False)["input_ids"]:
            pending.extend(ids)
        while len(pending) >= width:
            yield pending[:width]
            del pending[:width]
