"""What a model thinks of fixed examples: the log-probabilities of their answers, and how these compare with a start.

Shape suffixes: T tokens of a text, C of its answer, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eft_train.data.tokens import Tokenised

__all__ = ["Answers", "Measured", "Point", "compared", "log_probs"]


@dataclass(frozen=True)
class Answers:
    """The log-probabilities of an example's answers, token by token, in nats."""

    chosen: tuple[float, ...]
    rejected: tuple[float, ...] | None = None

    @property
    def totals(self) -> tuple[float, float | None]:
        """Their sums."""
        return math.fsum(self.chosen), None if self.rejected is None else math.fsum(self.rejected)


@dataclass(frozen=True)
class Measured:
    """An example with the log-probabilities of its answers at the end of a training, and before its last phase.

    Attributes:
        id: The example's.
        prompt_ids: The prompt's tokens.
        chosen_ids: The answer's, its end included.
        rejected_ids: The other answer's, if there is one.
        chosen: The log-probabilities of the answer's tokens under the expert.
        rejected: Those of the other answer's.
        start_chosen: Those of the answer's under the model from which the last phase started.
        start_rejected: Those of the other answer's.
    """

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...] | None
    chosen: tuple[float, ...]
    rejected: tuple[float, ...] | None
    start_chosen: tuple[float, ...]
    start_rejected: tuple[float, ...] | None

    @classmethod
    def of(cls, example: Tokenised, start: Answers, end: Answers) -> "Measured":
        """An example with what was measured."""
        rejected = None if example.rejected is None else tuple(example.rejected)
        ids = (tuple(example.prompt), tuple(example.chosen), rejected)
        return cls(example.id, *ids, end.chosen, end.rejected, start.chosen, start.rejected)


@dataclass(frozen=True)
class Point:
    """Means over examples.

    Attributes:
        logps_chosen: Of the answers' log-probabilities.
        logps_rejected: Of the other answers'.
        margin: Of the difference between both, as far as it has grown since the start.
        accuracy: The share of the examples whose difference has grown, ties counting half.
    """

    logps_chosen: float
    logps_rejected: float | None = None
    margin: float | None = None
    accuracy: float | None = None


def log_probs(model: Any, examples: Sequence[Tokenised]) -> list[Answers]:
    """Measure examples, one text at a time."""
    with _evaluating(model):
        return [
            Answers(
                _log_probs(model, example.prompt, example.chosen),
                None if example.rejected is None else _log_probs(model, example.prompt, example.rejected),
            )
            for example in examples
        ]


def compared(now: Sequence[Answers], start: Sequence[Answers] | None) -> Point:
    """Compare with a start; without one the log-probabilities themselves are the rewards, as for a reward model."""
    totals = [answers.totals for answers in now]
    before = [answers.totals for answers in start] if start else [(0.0, 0.0)] * len(now)
    pairs = [
        (chosen - earlier[0], rejected - earlier[1])
        for (chosen, rejected), earlier in zip(totals, before, strict=True)
        if rejected is not None and earlier[1] is not None
    ]
    if not pairs:
        return Point(fmean(chosen for chosen, _ in totals))
    return Point(
        logps_chosen=fmean(chosen for chosen, _ in totals),
        logps_rejected=fmean(rejected for _, rejected in totals if rejected is not None),
        margin=fmean(liked - disliked for liked, disliked in pairs),
        accuracy=fmean((liked > disliked) + 0.5 * (liked == disliked) for liked, disliked in pairs),
    )


def _log_probs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, ...]:
    import torch

    ids_T = torch.tensor([[*prompt, *answer]], device=model.device)
    logits_CV = model(input_ids=ids_T, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logp_C = logits_CV.log_softmax(-1).gather(-1, ids_T[0, len(prompt) :, None])[:, 0]
    return tuple(logp_C.tolist())


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout, and as before afterwards."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
