"""Whether two settings differ: a permutation test over paired prompts, exact where they are few.

Source: Fisher, The Design of Experiments (1935), section 21; Phipson & Smyth (2010) for the sampled one.
"""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "sign_flip_p"]

FEWEST = 6
"""Below, no difference whatever could reach p = 0.05: of 2 to the 5 signs, two are as extreme as the most extreme."""

_EXACT = 14
"""So many differences have 16,384 ways of signs, which are all looked at."""

_ROUNDING = 1e-9


def sign_flip_p(gains_P: NDArray[np.float64], repeats: int, seed: int) -> float:
    """Two-sided p of "no difference": how often signs at random make the sum as far from 0 as it is.

    If two settings are alike, either of a prompt's two values could as well have been the other's. The p-value is valid
    for any number of prompts and any distribution, unlike one from resampling them.

    Args:
        gains_P: differences by prompt, without NaN.
        repeats: how many signs are drawn where there are too many differences to look at all.
        seed: of the draws.

    Returns:
        NaN for fewer than `FEWEST` prompts; 1 where nothing differs.
    """
    if gains_P.size < FEWEST:
        return math.nan
    moved = gains_P[gains_P != 0]
    # A prompt without a difference is the same with either sign.
    observed = abs(moved.sum()) * (1 - _ROUNDING)
    if moved.size <= _EXACT:
        ways = np.arange(1 << moved.size)[:, None] >> np.arange(moved.size) & 1
        sums = (1 - 2 * ways) @ moved
        return float((np.abs(sums) >= observed).mean())
    rng, as_far = np.random.default_rng(seed), 0
    rows = max(1, (1 << 22) // moved.size)
    for start in range(0, repeats, rows):
        signs = rng.integers(0, 2, size=(min(rows, repeats - start), moved.size)) * 2 - 1
        as_far += int((np.abs(signs @ moved) >= observed).sum())
    return (as_far + 1) / (repeats + 1)
