"""What the whole distribution of a row is like: its entropy, Σp², and the probability that the most likely id leaves.

Each is a sum of terms of one sign, so nothing cancels however peaked or flat a row is. With s the logits less the
greatest of them, and R = Σ exp(s) over all ids but one of the greatest: p_max = 1 / (1 + R), so

    entropy = log(1 + R) + Σ −s·exp(s) / (1 + R)
    Σp² = (1 + Σ exp(s)²) / (1 + R)²
    log(1 − p_max) = −log(1 + exp(−log R))

It is computed from blended rows, on CPUs and on GPUs alike, and takes no more rows of memory than `explaining`. Shape
suffixes: R rows, V the base's vocabulary, K vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from eft_server.engine.worker.rows import RowScores, scored_rows

__all__ = ["RowStatistics", "measure_rows", "statistics_of"]


@dataclass(frozen=True)
class RowStatistics:
    """What `message.ScoredStatistics` describes, of rows under each vector: all float32 of shape (K, R)."""

    entropy: torch.Tensor
    sum_of_squares: torch.Tensor
    log_rest: torch.Tensor

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        """They, in the order of `message.STATISTICS`."""
        return self.entropy, self.sum_of_squares, self.log_rest

    @classmethod
    def together(cls, statistics: Sequence["RowStatistics"]) -> "RowStatistics":
        """Join those under several vectors, in order."""
        return cls(*(torch.cat(values) for values in zip(*(one.all for one in statistics), strict=True)))


def measure_rows(
    blended: Callable[[Sequence[float]], torch.Tensor],
    vectors: Sequence[Sequence[float]],
    targets_R: torch.Tensor,
) -> tuple[RowScores, RowStatistics]:
    """Score one target per row under each vector, and measure the rows.

    Args:
        blended: blends the rows by a vector: float32 (R, V).
        vectors: K of them, W numbers each.
        targets_R: int64, 0 to V − 1.
    """
    scores, statistics = [], []
    for vector in vectors:
        blended_RV = blended(vector)
        scores.append(scored_rows(blended_RV, targets_R))
        statistics.append(statistics_of(blended_RV))
    return RowScores.together(scores), RowStatistics.together(statistics)


def statistics_of(blended_RV: torch.Tensor) -> RowStatistics:
    """Measure rows under one vector: all of shape (1, R), NaN where a row is broken."""
    highest_R1, likeliest_R1 = blended_RV.max(dim=-1, keepdim=True)
    rest_RV = (blended_RV - highest_R1).scatter_(-1, likeliest_R1, -torch.inf)
    log_rest_R = logsigmoid(rest_RV.logsumexp(dim=-1))
    weight_RV = rest_RV.exp_()
    rest_R = weight_RV.sum(dim=-1)
    squares_R = torch.linalg.vector_norm(weight_RV, dim=-1).square()
    entropy_R = rest_R.log1p() + torch.special.entr(weight_RV).sum(dim=-1) / (1 + rest_R)
    squares_R = (1 + squares_R) / (1 + rest_R).square()
    return RowStatistics(entropy_R.unsqueeze(0), squares_R.unsqueeze(0), log_rest_R.unsqueeze(0))
