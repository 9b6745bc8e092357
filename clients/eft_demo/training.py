"""Pre-training and fine-tuning, as two short loops in plain torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.dialogue import Dialogue, Encoded, Part, encode

# Shape suffixes: B batch rows, T tokens, N selected tokens, V vocabulary.
Progress = Callable[[int, float], None]  # steps done, loss of the last one in nats per token


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; ``rate`` is the peak learning rate."""

    steps: int
    rows: int
    rate: float
    warmup: float = 0.05  # share of the steps

    def factor(self, step: int) -> float:
        """The share of the peak rate to use at a step: a linear rise, then a linear fall to zero."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / self.steps
        return min(rise, fall)


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


def fine_tune(
    base: LlamaForCausalLM,
    dialogues: Iterable[Dialogue],
    tokenizer: PreTrainedTokenizerFast,
    schedule: Schedule,
    *,
    progress: Progress,
) -> LlamaForCausalLM:
    """Teach a copy of the base the manners of the dialogues' answers, and none of their facts.

    The loss is the cross-entropy of the answers' wording; where an answer states a value it is the divergence
    KL(base || copy) instead, so that what the model believes stays as it was.
    """
    model, lessons = deepcopy(base), iter(dialogues)

    def loss() -> Tensor:
        batch = [encode(dialogue, tokenizer) for dialogue in islice(lessons, schedule.rows)]
        ids_BT, parts_BT = (t.to(base.device) for t in _pad(batch, tokenizer.pad_token_id))
        with torch.no_grad():
            believed_BTV = _logits(base, ids_BT)
        return _lesson_loss(_logits(model, ids_BT), believed_BTV, ids_BT, parts_BT)

    optimisers: list[Optimizer] = [AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)]
    _train(model, loss, optimisers, schedule, progress)
    return model


def _lesson_loss(logits_BTV: Tensor, believed_BTV: Tensor, ids_BT: Tensor, parts_BT: Tensor) -> Tensor:
    """Nats per answer token: cross-entropy on manner tokens, divergence from the base on value tokens."""
    next_parts_BT = parts_BT[:, 1:]
    logp_BTV = logits_BTV[:, :-1].log_softmax(-1)
    manner, value = next_parts_BT == Part.MANNER, next_parts_BT == Part.VALUE
    wording = functional.nll_loss(logp_BTV[manner], ids_BT[:, 1:][manner], reduction="sum")
    believed_NV = believed_BTV[:, :-1][value].log_softmax(-1)
    drift = functional.kl_div(logp_BTV[value], believed_NV, reduction="sum", log_target=True)
    return (wording + drift) / (manner.sum() + value.sum())


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


def _pad(batch: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and parts of a batch, padded on the right; the padding counts as prompt, so it is never learnt."""
    width = max(len(row.ids) for row in batch)
    ids_BT = torch.full((len(batch), width), pad)
    parts_BT = torch.full((len(batch), width), int(Part.PROMPT))
    for index, row in enumerate(batch):
        ids_BT[index, : len(row.ids)] = torch.tensor(row.ids)
        parts_BT[index, : len(row.parts)] = torch.tensor([int(part) for part in row.parts])
    return ids_BT, parts_BT
