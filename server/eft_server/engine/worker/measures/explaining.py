"""What is reported of a row beside its target's scores: likely tokens, entropy, divergence, a filter's part.

It is computed from blended rows, on CPUs and on GPUs alike, and waits for no device.

Shape suffixes: R rows, V the base's vocabulary, K vectors, L the leading ones of these, N likely tokens, N1 the target
and these.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from eft_server.behaviour.equation import nucleus
from eft_server.engine.message import Explaining
from eft_server.engine.worker.measures.reporting import divergence
from eft_server.engine.worker.rows import RowScores, scored_rows

__all__ = ["ROWS_TO_EXPLAIN", "RowExplanation", "explain_rows"]

ROWS_TO_EXPLAIN = 6
"""Float32 rows of a vocabulary that explaining a row takes beside the members' logits."""

Blended = Callable[[Sequence[float]], torch.Tensor]
"""The rows blended by a vector: float32 (R, V)."""


@dataclass(frozen=True)
class RowExplanation:
    """What is reported of each row, as in `message.Explained`.

    Attributes:
        scores: the scores of the rows' targets.
        likeliest_KR: int64; the most likely token under each vector.
        ids_RN: int64; the likeliest tokens under the first vector.
        logprobs_LRN: float32; their log-probabilities.
        entropy_R: float32.
        divergence_R: float32.
        filter_RN1: float32; None if the first vector has no filter.
        sampled_RN1: float32; None if the sampling settings are neutral.
    """

    scores: RowScores
    likeliest_KR: torch.Tensor
    ids_RN: torch.Tensor
    logprobs_LRN: torch.Tensor
    entropy_R: torch.Tensor
    divergence_R: torch.Tensor
    filter_RN1: torch.Tensor | None
    sampled_RN1: torch.Tensor | None


def explain_rows(
    blended: Blended, vectors: Sequence[Sequence[float]], targets_R: torch.Tensor, asked: Explaining
) -> RowExplanation:
    """Explain one target per row.

    Args:
        blended: blends the rows.
        vectors: K of them, W numbers each; the first is the request's.
        targets_R: int64, 0 to V − 1.
        asked: what to report.
    """
    own_RV = blended(vectors[0])
    ids_RN = own_RV.topk(asked.likely, dim=-1).indices
    ids_RN1 = torch.cat([targets_R.unsqueeze(-1), ids_RN], dim=-1)
    filter_RN1 = _filter_part(blended, vectors[0], own_RV, ids_RN1) if asked.filtered else None
    log_p_RV = own_RV.log_softmax(dim=-1)
    p_RV = log_p_RV.exp()
    scores, likeliest, logprobs, divergence_R = [], [], [], None
    for place, vector in enumerate(vectors):
        row_RV = own_RV if place == 0 else blended(vector)
        score = scored_rows(row_RV, targets_R)
        highest_R1, likeliest_R1 = row_RV.max(dim=-1, keepdim=True)
        scores.append(score)
        likeliest.append(likeliest_R1.squeeze(-1))
        total_R1 = highest_R1 - score.likeliest.T
        if place < asked.leading:
            logprobs.append(row_RV.gather(-1, ids_RN) - total_R1)
        if place == asked.base:
            divergence_R = divergence(p_RV, log_p_RV, row_RV - total_R1)
    assert divergence_R is not None, "the base is one of the vectors"
    return RowExplanation(
        RowScores.together(scores),
        torch.stack(likeliest),
        ids_RN,
        torch.stack(logprobs),
        torch.special.entr(p_RV).sum(dim=-1),
        divergence_R,
        filter_RN1,
        None if asked.neutral else _sampled(own_RV, asked).gather(-1, ids_RN1),
    )


def _filter_part(
    blended: Blended, vector: Sequence[float], own_RV: torch.Tensor, ids_RN1: torch.Tensor
) -> torch.Tensor:
    """What the filter adds to these ids' logits: 0 where it changes nothing, −inf where it removes one."""
    members = (len(vector) - 2) // 2
    always, delta = vector[:members], vector[members : 2 * members]
    nothing = (0.0,) * (members + 2)
    whole = [c + u for c, u in zip(always, delta, strict=True)]
    unfiltered_RV = blended([*whole, *nothing])
    added_RN1 = own_RV.gather(-1, ids_RN1) - unfiltered_RV.gather(-1, ids_RN1)
    if not any(delta):
        return added_RN1
    # The filter adds the delta of log-probabilities, the sum that of logits: they differ by a constant, which is seen
    # at a token that is always in the nucleus.
    inside_R1 = blended([*always, *nothing]).argmax(dim=-1, keepdim=True)
    return added_RN1 - (own_RV.gather(-1, inside_R1) - unfiltered_RV.gather(-1, inside_R1))


def _sampled(logits_RV: torch.Tensor, asked: Explaining) -> torch.Tensor:
    """Log-probabilities after temperature, min_p, top_k and top_p, in vLLM's order; −inf if cut off: (R, V)."""
    if asked.temperature == 0:
        greedy_RV = torch.full_like(logits_RV, -torch.inf)
        return greedy_RV.scatter_(-1, logits_RV.argmax(dim=-1, keepdim=True), 0.0)
    logits_RV = logits_RV / asked.temperature
    if asked.min_p > 0:
        least_R1 = logits_RV.amax(dim=-1, keepdim=True) + math.log(asked.min_p)
        logits_RV = logits_RV.masked_fill_(logits_RV < least_R1, -torch.inf)
    if 0 < asked.top_k < logits_RV.shape[-1]:
        least_R1 = logits_RV.topk(asked.top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill_(logits_RV < least_R1, -torch.inf)
    if asked.top_p < 1:
        top_p_R = logits_RV.new_full((len(logits_RV),), asked.top_p)
        if logits_RV.is_cpu:  # There vLLM sorts the whole vocabulary.
            logits_RV = logits_RV.masked_fill_(~nucleus(logits_RV, top_p_R), -torch.inf)
        else:
            logits_RV = apply_top_k_top_p(logits_RV, None, top_p_R)
    return logits_RV.log_softmax(dim=-1)
