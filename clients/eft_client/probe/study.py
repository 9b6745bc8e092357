"""Probing: the expert's activations and the three controls, each cross-validated on the same folds.

Shape suffixes: R rows.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eft_client.probe.statistics.folds import Fold, outer_folds
from eft_client.probe.statistics.measures import Held
from eft_client.probe.statistics.probes import Features, fit
from eft_client.probe.statistics.problem import Problem

__all__ = ["Finding", "Probed", "Source", "fits", "probe"]

_LARGE = 1 << 24


@dataclass(frozen=True)
class Source:
    """Something to probe.

    Attributes:
        layers: those that it has; one, 0, of features that belong to no layer.
        at: the features of a problem's rows at a layer.
    """

    layers: Sequence[int]
    at: Callable[[int], Features]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probes of a source said of rows that they had not seen.

    Attributes:
        by_layer: at each layer.
        chosen: for each fold the layer that did best in its inner folds, without a look at the rows left out.
        best: what each fold's probe at its chosen layer said.
        penalties: of each layer's probes, by fold.
    """

    by_layer: Mapping[int, Held]
    chosen: Sequence[int]
    best: Held
    penalties: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def often(self, layer: int) -> int:
        """In how many folds a layer was chosen."""
        return list(self.chosen).count(layer)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one target.

    Attributes:
        problem: the target and its rows.
        probed: by name: the expert first, its reference, tokens, and codes if there are any.
        shuffled: the expert's probes once more, each time for other shuffled targets.
    """

    problem: Problem
    probed: Mapping[str, Probed]
    shuffled: Sequence[Probed]


def probe(  # noqa: PLR0913 (what is probed, and how)
    problem: Problem,
    sources: Mapping[str, Source],
    *,
    folds: int,
    shuffles: int,
    seed: int,
    advance: Callable[[int], object] = lambda _: None,
) -> Finding:
    """Probe one target.

    Args:
        problem: The target.
        sources: What to probe by name; the first is the expert.
        folds: Of the outer cross-validation.
        shuffles: How often targets are shuffled.
        seed: Of folds and shuffles.
        advance: Called with the number of probes that were fitted; `fits` tells how many there will be.

    Raises:
        ProbeError: There are too few prompts.
    """
    split = outer_folds(problem, folds, seed)
    probed = {name: _cross_validated(problem, split, source, advance) for name, source in sources.items()}
    source, expert = next(iter(sources.values())), next(iter(probed.values()))
    others = [problem.shuffled(seed + number) for number in range(shuffles)]
    return Finding(
        problem=problem, probed=probed, shuffled=_controlled(others, split, source, expert, advance)
    )


def fits(sources: Mapping[str, Source], *, folds: int, shuffles: int) -> int:
    """How many probes `probe` fits."""
    layers = [len(source.layers) for source in sources.values()]
    return folds * (sum(layers) + shuffles * layers[0])


def _cross_validated(
    problem: Problem, folds: Sequence[Fold], source: Source, advance: Callable[[int], object]
) -> Probed:
    """Fit probes at each layer and in each fold; one layer's features are held at a time."""
    scores, inner, penalties = dict[int, NDArray[np.float64]](), [], dict[int, list[float]]()
    for layer in source.layers:
        features = source.at(layer)
        with _few_threads(features):
            fitted = [fit(problem, features, fold) for fold in folds]
        scores[layer] = _together(problem, folds, [one.scores_R for one in fitted])
        inner.append([one.inner for one in fitted])
        penalties[layer] = [one.penalty for one in fitted]
        advance(len(folds))
    chosen = [source.layers[place] for place in np.argmax(inner, axis=0)]
    return _stitched(problem, folds, scores, chosen, penalties)


def _controlled(
    others: Sequence[Problem],
    folds: Sequence[Fold],
    source: Source,
    expert: Probed,
    advance: Callable[[int], object],
) -> list[Probed]:
    """The expert's probes with its layers and penalties, fitted to other targets."""
    scores: list[dict[int, NDArray[np.float64]]] = [{} for _ in others]
    for layer in source.layers:
        features = source.at(layer)
        for other, found in zip(others, scores, strict=True):
            with _few_threads(features):
                fitted = [
                    fit(other, features, fold, penalty)
                    for fold, penalty in zip(folds, expert.penalties[layer], strict=True)
                ]
            found[layer] = _together(other, folds, [one.scores_R for one in fitted])
            advance(len(folds))
    return [
        _stitched(other, folds, found, expert.chosen) for other, found in zip(others, scores, strict=True)
    ]


def _few_threads(features: Features) -> AbstractContextManager[object]:
    """One thread for small matrices: several would wait for each other, and where others compute for seconds a fit."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    small = features.shape[0] * features.shape[1] < _LARGE
    limited: AbstractContextManager[object] = threadpool_limits(1 if small else None)
    return limited


def _stitched(
    problem: Problem,
    folds: Sequence[Fold],
    scores: Mapping[int, NDArray[np.float64]],
    chosen: Sequence[int],
    penalties: Mapping[int, Sequence[float]] | None = None,
) -> Probed:
    parts = [scores[layer][fold.test_R] for fold, layer in zip(folds, chosen, strict=True)]
    best = _together(problem, folds, parts)
    return Probed(
        by_layer={layer: _held(problem, folds, found) for layer, found in scores.items()},
        chosen=chosen,
        best=_held(problem, folds, best),
        penalties=penalties or {},
    )


def _together(
    problem: Problem, folds: Sequence[Fold], parts: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The parts of each fold's test rows, in the order of all rows."""
    whole = np.empty(problem.rows)
    for fold, part in zip(folds, parts, strict=True):
        whole[fold.test_R] = part
    return whole


def _held(problem: Problem, folds: Sequence[Fold], scores_R: NDArray[np.float64]) -> Held:
    numbers = [np.full(len(fold.test_R), number, dtype=np.float64) for number, fold in enumerate(folds)]
    return Held(
        scores_R=scores_R,
        targets_R=problem.targets_R,
        prompts_R=problem.prompts_R,
        folds_R=_together(problem, folds, numbers).astype(np.int64),
    )
