"""Expectation-adjusted distinct n-grams: how many are distinct, relative to how many would be expected.

Source: Liu et al., "Rethinking and Refining the Distinct Metric" (arXiv 2202.13587) for one n; Kirk et al. (arXiv
2310.06452) for the mean over n = 1..5.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.diversity.sets import jackknife_values
from eft_client.quality.word_boundaries import separated, visible

__all__ = ["ORDERS", "VOCABULARY", "ead", "ead_of_counts", "ead_values", "words"]

ORDERS = (1, 2, 3, 4, 5)
#: V, as in the code that Kirk et al. published: the size of GPT-2's vocabulary.
VOCABULARY = 50_257

NGram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The tokens: what white space separates, without full stops, as in the code that Kirk et al. published.

    That code is for English; scripts that are written without spaces are separated first (`word_boundaries`), and
    characters that take no room are left out.
    """
    return separated(visible(text).replace(".", "").replace("。", "")).split()


def ead(texts: Sequence[str], *, vocabulary: int = VOCABULARY, orders: Sequence[int] = ORDERS) -> float:
    """The mean over n of N / (V · (1 − ((V − 1) / V)^C)).

    N is the number of different n-grams in all texts together and C the number of all; no n-gram spans two texts. The
    denominator is how many different ones C draws from V equally likely tokens are expected to give, so the value
    does not fall with length as a plain distinct count does. An n for which there is no n-gram counts 0.
    """
    return float(np.mean([_ead_of(texts, n, vocabulary) for n in orders]))


def ead_values(
    texts: Sequence[str], *, vocabulary: int = VOCABULARY, orders: Sequence[int] = ORDERS
) -> NDArray[np.float64]:
    """A value for each text, whose mean is `ead(texts)`, by the jackknife over texts."""
    whole = ead(texts, vocabulary=vocabulary, orders=orders)
    without = np.mean([_without_each(texts, n, vocabulary) for n in orders], axis=0)
    return jackknife_values(whole, without)


def ead_of_counts(distinct: int, total: int, vocabulary: int) -> float:
    """N / (V · (1 − ((V − 1) / V)^C)), or 0 where there is nothing to count."""
    expected = -vocabulary * np.expm1(total * np.log1p(-1 / vocabulary))
    return float(distinct / expected) if total else 0.0


def _ead_of(texts: Sequence[str], n: int, vocabulary: int) -> float:
    grams = [gram for text in texts for gram in _grams(text, n)]
    return ead_of_counts(len(set(grams)), len(grams), vocabulary)


def _without_each(texts: Sequence[str], n: int, vocabulary: int) -> list[float]:
    """EAD of order n without each text in turn: without those of its n-grams that no other text has."""
    counts = [Counter(_grams(text, n)) for text in texts]
    holders = Counter(gram for count in counts for gram in count)
    total = sum(count.total() for count in counts)
    return [
        ead_of_counts(
            len(holders) - sum(holders[gram] == 1 for gram in count), total - count.total(), vocabulary
        )
        for count in counts
    ]


def _grams(text: str, n: int) -> list[NGram]:
    found = words(text)
    return [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]
