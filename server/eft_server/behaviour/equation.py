"""The equation that the server exists for, as pure tensor functions.

Shape suffixes: R rows (one per sampled or scored position), F the filtered ones among them, V the base's vocabulary,
M members, U ids that not all members share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eft_server.behaviour.coefficients import EXPERT_FILTER

LIKELY = 1024
"""A nucleus is first sought among this many of the most likely tokens; only then are all sorted."""


@dataclass(frozen=True)
class Filters:
    """The filter of each row, if it has one.

    Attributes:
        delta_RM: float32; the up-scaling delta's coefficients u, on log-probabilities. They add up to zero and
            count for rows of the expert kind, whose other coefficients leave the delta out.
        kind_R: float32; 0 for no filter, `coefficients.EXPERT_FILTER` or `coefficients.BASE_FILTER`.
        top_p_R: float32; the probability that the nucleus holds, 0 to 1.
    """

    delta_RM: torch.Tensor
    kind_R: torch.Tensor
    top_p_R: torch.Tensor

    def at(self, rows_F: torch.Tensor) -> "Filters":
        """The filters of some of the rows."""
        return Filters(self.delta_RM[rows_F], self.kind_R[rows_F], self.top_p_R[rows_F])


def blend(
    logits_M: Sequence[torch.Tensor],
    coefficients_RM: torch.Tensor,
    unshared_U: torch.Tensor,
    filters: Filters | None = None,
) -> torch.Tensor:
    """Combine the members' logits: z = sum over m of c_m · z_m (arXiv 2310.12962, equation 5, for any c).

    A member whose coefficient is zero is left out instead of multiplied by 0: a row whose coefficients are
    (1, 0, …, 0) holds the base's logits bit for bit, even where another member's are infinite.

    A row with a filter (see `nucleus`; P is a nucleus, log p_m a member's log-probabilities, both over the
    shared ids only):

    - expert: z + [x in P(softmax z)] · sum over m of u_m · log p_m. With one expert of weight 1, z is the expert's,
      and the sum is the up-scaling delta log p_base − log p_ref (the paper's "conservative decoding").
    - base: z inside P(softmax z_base), −inf outside (the form of DExperts, arXiv 2105.03023).

    Args:
        logits_M: one tensor of shape (R, V_m) for each member, the base first, any floating dtype. A member with
            a larger vocabulary than the base's is cut to it; one with a smaller adds nothing beyond its end.
        coefficients_RM: float32 of shape (R, M).
        unshared_U: the ids that not all members share. They become −inf, after the sum, in every row that is
            not the plain base.
        filters: None where no row has one.

    Returns:
        float32 logits of shape (R, V). A row with a NaN or +inf, or with nothing but −inf, becomes NaN throughout,
        so that the sampler can recognise it.
    """
    blended_RV = _weighted_sum(logits_M, coefficients_RM)
    if unshared_U.numel():
        steered_R1 = ~is_plain_base(coefficients_RM).unsqueeze(-1)
        blended_RV[:, unshared_U] = blended_RV[:, unshared_U].masked_fill(steered_R1, -torch.inf)
    if filters is not None:
        rows_F = filters.kind_R.nonzero().squeeze(-1)
        chosen_M = [logits_RV[rows_F].float() for logits_RV in logits_M]
        blended_RV[rows_F] = _filtered(blended_RV[rows_F], chosen_M, unshared_U, filters.at(rows_F))
    broken_R1 = ~blended_RV.amax(dim=-1, keepdim=True).isfinite()
    return blended_RV.masked_fill_(broken_R1, torch.nan)


def is_plain_base(coefficients_RM: torch.Tensor) -> torch.Tensor:
    """Which rows are (1, 0, …, 0): bool of shape (R,)."""
    return (coefficients_RM[:, 0] == 1) & (coefficients_RM[:, 1:] == 0).all(dim=-1)


def is_broken(blended_RV: torch.Tensor) -> torch.Tensor:
    """Which rows `blend` made NaN, even after a grammar has set some of their ids to −inf: bool of shape (R,)."""
    return blended_RV.amax(dim=-1).isnan()


def nucleus(logits_RV: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """Which tokens are in each row's nucleus: those before which the more likely ones add up to less than top_p.

    The most likely token is always in it, and tokens of equal probability are in or out together. A nucleus of 1
    holds every possible token.

    Args:
        logits_RV: float32 of shape (R, V).
        top_p_R: float32 of shape (R,), 0 to 1.

    Returns:
        bool of shape (R, V).
    """
    return logits_RV >= _least_inside(logits_RV, top_p_R)


def _least_inside(logits_RV: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """The smallest logit of each row's nucleus: (R, 1)."""
    vocabulary = logits_RV.shape[-1]
    # Sorting a whole vocabulary may take longer than the members do, and most nuclei are small.
    least_R1, found_R = _least_among(min(LIKELY, vocabulary), logits_RV, top_p_R)
    whole_R = top_p_R >= 1
    if vocabulary > LIKELY:
        rows_W = (~(found_R | whole_R)).nonzero().squeeze(-1)
        if rows_W.numel():
            least_R1[rows_W], _ = _least_among(vocabulary, logits_RV[rows_W], top_p_R[rows_W])
    # Sums of float32 reach 1 before the last token.
    return least_R1.masked_fill(whole_R.unsqueeze(-1), torch.finfo(torch.float32).min)


def _least_among(
    likely: int, logits_RV: torch.Tensor, top_p_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest logit of the nucleus among the most likely tokens, (R, 1), and whether the nucleus ends there."""
    sorted_RL = logits_RV.topk(likely, dim=-1).values
    probability_RL = (sorted_RL - logits_RV.logsumexp(dim=-1, keepdim=True)).exp()
    likelier_RL = probability_RL.cumsum(dim=-1) - probability_RL
    inside_R1 = (likelier_RL < top_p_R.unsqueeze(-1)).sum(dim=-1, keepdim=True)
    return sorted_RL.gather(-1, inside_R1.sub(1).clamp(min=0)), inside_R1.squeeze(-1) < likely


def _filtered(
    blended_FV: torch.Tensor, logits_M: Sequence[torch.Tensor], unshared_U: torch.Tensor, filters: Filters
) -> torch.Tensor:
    base_FV = logits_M[0].index_fill(-1, unshared_U, -torch.inf)
    # Plain-base rows still hold ids that not all members share; a filter's nucleus consists of shared ids.
    blended_FV = blended_FV.index_fill(-1, unshared_U, -torch.inf)
    of_expert_F1 = (filters.kind_R == EXPERT_FILTER).unsqueeze(-1)
    judged_FV = torch.where(of_expert_F1, blended_FV, base_FV)
    inside_FV = nucleus(judged_FV, filters.top_p_R)
    delta_FV = _log_probability_sum(logits_M, filters.delta_RM, unshared_U)
    by_expert_FV = blended_FV + torch.where(inside_FV, delta_FV, 0.0)
    by_base_FV = blended_FV.masked_fill(~inside_FV, -torch.inf)
    filtered_FV = torch.where(of_expert_F1, by_expert_FV, by_base_FV)
    # A value that is not finite must not vanish behind the filter, nor pass for a nucleus.
    highest_F1 = blended_FV.amax(dim=-1, keepdim=True) + judged_FV.amax(dim=-1, keepdim=True)
    return filtered_FV.masked_fill(~highest_F1.isfinite(), torch.nan)


def _log_probability_sum(
    logits_M: Sequence[torch.Tensor], weights_RM: torch.Tensor, unshared_U: torch.Tensor
) -> torch.Tensor:
    """Add up the members' log-probabilities over the shared ids, all of which are below every member's size."""
    vocabulary = logits_M[0].shape[-1]
    log_p_M = []
    for logits_RV in logits_M:
        own_RV = logits_RV[:, :vocabulary]
        own_U = unshared_U[unshared_U < own_RV.shape[-1]]
        log_p_RV = own_RV.index_fill(-1, own_U, -torch.inf).log_softmax(dim=-1)
        log_p_M.append(log_p_RV.index_fill_(-1, own_U, 0.0))
    return _weighted_sum(log_p_M, weights_RM)


def _weighted_sum(logits_M: Sequence[torch.Tensor], coefficients_RM: torch.Tensor) -> torch.Tensor:
    total_RV: torch.Tensor | None = None
    for member, logits_RV in enumerate(logits_M):
        weight_R1 = coefficients_RM[:, member : member + 1]
        if total_RV is None:
            total_RV = torch.where(weight_R1 == 0, 0.0, weight_R1 * logits_RV.float())
            continue
        width = min(logits_RV.shape[-1], total_RV.shape[-1])
        head_RV = total_RV[:, :width]
        summed_RV = torch.addcmul(head_RV, weight_R1, logits_RV[:, :width].float())
        head_RV.copy_(torch.where(weight_R1 == 0, head_RV, summed_RV))
    assert total_RV is not None, "a family has at least its base"
    return total_RV
