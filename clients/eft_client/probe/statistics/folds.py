"""Cross-validation by prompt: no probe is asked about a prompt that it was fitted on, nor chosen by one.

Shape suffixes: R rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eft_client.probe.errors import ProbeError
from eft_client.probe.statistics.problem import Problem, TargetKind

__all__ = ["INNER_FOLDS", "Fold", "outer_folds", "require_prompts"]

INNER_FOLDS = 3

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """One round of the outer cross-validation.

    Attributes:
        train_R: the rows that the probe is fitted on.
        test_R: those that it is asked about; they share no prompt with the others.
        inner: splits of the former by prompt, as places in `train_R`, by which penalty and layer are chosen.
    """

    train_R: Rows
    test_R: Rows
    inner: Sequence[tuple[Rows, Rows]]


def outer_folds(problem: Problem, folds: int, seed: int) -> list[Fold]:
    """Split the rows by prompt, and each fold's training rows again.

    Raises:
        ProbeError: There are too few prompts, or too few of a class, for these folds.
    """
    require_prompts(problem.prompts, folds, problem.target)
    found = [
        Fold(train, test, _split(problem, train, INNER_FOLDS, seed + 1))
        for train, test in _split(problem, np.arange(problem.rows), folds, seed)
    ]
    if problem.kind is TargetKind.CLASS:
        parts = [fold.train_R[rows] for fold in found for split in fold.inner for rows in split]
        for rows in [*parts, *(fold.test_R for fold in found)]:
            _require_both(problem, rows)
    return found


def require_prompts(prompts: int, folds: int, what: str) -> None:
    """Find out whether there are prompts enough for these folds, and for the inner ones.

    Raises:
        ProbeError: There are not.
    """
    least = max(folds, -(-(INNER_FOLDS * folds) // (folds - 1)))
    if prompts < least:
        raise ProbeError(
            f"{what}: {prompts} prompts; {folds} folds need at least {least} (prompts that are the same count once)"
        )


def _split(problem: Problem, rows: Rows, count: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Splits by prompt of some rows, as places among them; classes are spread evenly."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    splitter = StratifiedGroupKFold if problem.kind is TargetKind.CLASS else GroupKFold
    by_prompt = splitter(count, shuffle=True, random_state=seed)
    classes = problem.targets_R[rows] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of too few of a class: we refuse it in our words
        return list(by_prompt.split(np.zeros(len(rows)), classes, problem.prompts_R[rows]))


def _require_both(problem: Problem, rows: Rows) -> None:
    if len(np.unique(problem.targets_R[rows] > 0)) < 2:
        positive = int((problem.targets_R > 0).sum())
        raise ProbeError(
            f"{problem.target}: {positive} rows with label 1 and {problem.rows - positive} with 0 are too few of one: "
            "some fold has none; give more data, or fewer --folds"
        )
