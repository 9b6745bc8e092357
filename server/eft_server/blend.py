"""The equation that the server exists for, as pure tensor functions.

Shape suffixes: R rows (one per sampled or scored position), V the base's vocabulary, M members.
"""

from collections.abc import Sequence

import torch


def blend(
    logits_M: Sequence[torch.Tensor], coefficients_RM: torch.Tensor, unshared_U: torch.Tensor
) -> torch.Tensor:
    """Combine the members' logits: z = sum over m of c_m · z_m (arXiv 2310.12962, equation 5, for any c).

    A member whose coefficient is zero contributes nothing at all, not 0 · z: a row whose coefficients are
    (1, 0, …, 0) holds the base's logits bit for bit, also where another member's are infinite.

    Args:
        logits_M: one tensor of shape (R, V_m) for each member, the base first, any floating dtype. A member with
            a larger vocabulary than the base's is cut to it; one with a smaller adds nothing beyond its own.
        coefficients_RM: float32 of shape (R, M).
        unshared_U: the ids that not all members share. They become −inf, after the sum, in every row that is
            not the plain base.

    Returns:
        float32 logits of shape (R, V). A row with a NaN or +inf, or with nothing but −inf, is NaN throughout,
        so that whoever samples from it can tell.
    """
    blended_RV = _weighted_sum(logits_M, coefficients_RM)
    if unshared_U.numel():
        steered_R1 = ~is_plain_base(coefficients_RM).unsqueeze(-1)
        blended_RV[:, unshared_U] = blended_RV[:, unshared_U].masked_fill(steered_R1, -torch.inf)
    broken_R1 = ~blended_RV.amax(dim=-1, keepdim=True).isfinite()
    return blended_RV.masked_fill_(broken_R1, torch.nan)


def is_plain_base(coefficients_RM: torch.Tensor) -> torch.Tensor:
    """Tell which rows are (1, 0, …, 0): bool of shape (R,)."""
    return (coefficients_RM[:, 0] == 1) & (coefficients_RM[:, 1:] == 0).all(dim=-1)


def is_broken(blended_RV: torch.Tensor) -> torch.Tensor:
    """Tell which rows `blend` gave up on, also after a grammar has set some of their ids to −inf: bool (R,)."""
    return blended_RV.amax(dim=-1).isnan()


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
