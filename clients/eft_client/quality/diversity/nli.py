"""Logical diversity: how much answers contradict rather than entail one another, by a cross-encoder.

Source: Stasaski & Hearst, "Semantic Diversity in Dialogue with Natural Language Inference" (arXiv 2205.01497), which
Kirk et al. (arXiv 2310.06452) use. Contradiction counts +1, neutral 0 and entailment −1, each by the probability of
the likeliest label, in both directions of a pair. We take the mean over directions and pairs, so that the value lies
between −1 (all entail each other) and 1 (all contradict each other).
"""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.diversity.sets import pair_values
from eft_client.quality.errors import StudyError

__all__ = ["CrossEncoder", "draw_pairs", "nli_diversity", "nli_values"]

_WORTH = {"contradiction": 1.0, "neutral": 0.0, "entailment": -1.0}
_BATCH = 64
_MAX_TOKENS = 512


class CrossEncoder:
    """A checkpoint that classifies pairs of texts as entailment, neutral or contradiction, each pair once.

    Args:
        model: a folder with a sequence-classification checkpoint whose labels have those names.

    Raises:
        StudyError: transformers or torch is missing, there is no such folder, or its labels are others.
    """

    def __init__(self, model: Path) -> None:
        if not (model / "config.json").is_file():
            raise StudyError(f"{model}: no cross-encoder; expected a folder with a config.json")
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ModuleNotFoundError as error:
            raise StudyError(
                f"diversity by NLI needs the extra `embeddings`: pip install 'eft-server[embeddings]' ({error})"
            ) from None
        options = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, **options)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(model, **options).eval()
        self._worth = _worth_of(self._model.config.id2label, model)
        self._known: dict[tuple[str, str], float] = {}

    def prepare(
        self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object] = lambda _: None
    ) -> None:
        """Judge the pairs that are not known yet, in this direction, reporting after each batch how many were done."""
        new = sorted(
            {pair for pair in pairs if pair not in self._known}, key=lambda pair: sum(map(len, pair))
        )
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._known.update(zip(batch, self._judged(batch), strict=True))
            advance(len(batch))

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Each pair's value, the mean of both directions, between −1 and 1."""
        both = [*pairs, *((second, first) for first, second in pairs)]
        self.prepare(both)
        values = np.array([self._known[pair] for pair in both])
        return np.asarray((values[: len(pairs)] + values[len(pairs) :]) / 2, dtype=np.float64)

    def _judged(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        length = min(_MAX_TOKENS, self._tokenizer.model_max_length)
        first, second = zip(*pairs, strict=True)
        encoded = self._tokenizer(
            list(first), list(second), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            likeliest = self._model(**encoded).logits.softmax(dim=-1).max(dim=-1)
        return [
            self._worth[index] * share
            for index, share in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ]


def _worth_of(labels: dict[int, str], model: Path) -> list[float]:
    names = [str(labels[index]).lower() for index in sorted(labels)]
    if sorted(names) != sorted(_WORTH):
        raise StudyError(
            f"{model}: its labels are {', '.join(names) or 'none'}; expected {', '.join(_WORTH)}"
        )
    return [_WORTH[name] for name in names]


def draw_pairs(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Pairs i < j of `count` members: all of them, or a seeded sample where there are more than `most`."""
    if count * (count - 1) // 2 <= most:
        found = list(combinations(range(count), 2))
    else:
        rng, chosen = random.Random(f"{seed} {count}"), set[tuple[int, int]]()
        while len(chosen) < most:
            first, second = sorted(rng.sample(range(count), 2))
            chosen.add((first, second))
        found = sorted(chosen)
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def nli_diversity(texts: Sequence[str], judge: CrossEncoder, *, most: int, seed: int = 0) -> float:
    """The mean over pairs of texts, or over a seeded sample of at most `most` of them; NaN for fewer than two."""
    pairs = draw_pairs(len(texts), most, seed)
    return float(judge(_texts_of(pairs, texts)).mean()) if len(pairs) else float("nan")


def nli_values(texts: Sequence[str], judge: CrossEncoder, *, most: int, seed: int = 0) -> NDArray[np.float64]:
    """A value for each text, whose mean is `nli_diversity`, by the jackknife; NaN for fewer than two."""
    pairs = draw_pairs(len(texts), most, seed)
    if not len(pairs):
        return np.full(len(texts), np.nan)
    return pair_values(pairs, judge(_texts_of(pairs, texts)), len(texts))


def _texts_of(pairs: NDArray[np.int64], texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(texts[first], texts[second]) for first, second in pairs.tolist()]
