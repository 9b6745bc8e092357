"""The probes: linear models on standardised features, their penalty chosen by inner folds.

Shape suffixes: R rows, F features.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.probe.statistics.folds import Fold, Rows
from eft_client.probe.statistics.problem import Problem, TargetKind

__all__ = ["Features", "Fitted", "fit"]

Features = Any
"""An array [R, F], or a sparse matrix of counts."""

#: Ridge penalties, and inverse penalties of logistic regressions: for standardised features, and for plain counts.
_RIDGE = {False: np.logspace(0, 6, 7), True: np.logspace(-2, 4, 7)}
_LOGISTIC = {False: np.logspace(-5, 1, 7), True: np.logspace(-3, 3, 7)}
_MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class Fitted:
    """A probe of one fold.

    Attributes:
        scores_R: of the fold's test rows.
        penalty: the one that was chosen, or given.
        inner: how well it did in the inner folds: higher is better, whatever the features; NaN where it was given.
    """

    scores_R: NDArray[np.float64]
    penalty: float
    inner: float


def fit(problem: Problem, features_RF: Features, fold: Fold, penalty: float | None = None) -> Fitted:
    """Fit a probe on a fold's training rows, and ask it about the others.

    Args:
        problem: What to say.
        features_RF: Of all rows.
        fold: Which rows are for what.
        penalty: That of the probe, for a control; None chooses it in the inner folds.
    """
    if problem.kind is TargetKind.NUMBER:
        return _fit_ridge(problem, features_RF, fold, penalty)
    return _fit_logistic(problem, features_RF, fold, penalty)


def _fit_ridge(problem: Problem, features_RF: Features, fold: Fold, penalty: float | None) -> Fitted:
    from sklearn.linear_model import Ridge, RidgeCV

    tried = _RIDGE[_is_sparse(features_RF)]
    model = RidgeCV(tried, cv=list(fold.inner), scoring="r2") if penalty is None else Ridge(penalty)
    probe = _scaled(features_RF, model)
    probe.fit(features_RF[fold.train_R], problem.targets_R[fold.train_R])
    scores = probe.predict(features_RF[fold.test_R])
    if penalty is not None:
        return Fitted(scores, penalty, np.nan)
    return Fitted(scores, float(model.alpha_), float(model.best_score_))


def _fit_logistic(problem: Problem, features_RF: Features, fold: Fold, penalty: float | None) -> Fitted:
    """Of pairs each difference counts in both directions, without an intercept: there is no order to learn."""
    paired, tried = problem.kind is TargetKind.PAIR, _LOGISTIC[_is_sparse(features_RF)]
    features, positive = features_RF[fold.train_R], problem.targets_R[fold.train_R] > 0
    inner = list(fold.inner)
    if paired:
        features, positive = _stacked(features, -features), np.concatenate([positive, ~positive])
        count = len(fold.train_R)
        inner = [
            (np.concatenate([fitted, fitted + count]), np.concatenate([asked, asked + count]))
            for fitted, asked in inner
        ]
    model = _logistic(tried, inner, penalty, fit_intercept=not paired)
    probe = _scaled(features_RF, model, centred=not paired)
    _fit_quietly(probe, features, positive)
    scores = probe.decision_function(features_RF[fold.test_R])
    if penalty is not None:
        return Fitted(scores, penalty, np.nan)
    chosen = float(np.asarray(model.C_).reshape(-1)[0])
    by_penalty = np.asarray(model.scores_).reshape(-1, len(tried)).mean(axis=0)
    return Fitted(scores, chosen, float(by_penalty.max()))


def _logistic(
    tried: NDArray[np.float64],
    inner: Sequence[tuple[Rows, Rows]],
    penalty: float | None,
    *,
    fit_intercept: bool,
) -> Any:
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    if penalty is not None:
        return LogisticRegression(C=penalty, fit_intercept=fit_intercept, max_iter=_MAX_ITERATIONS)
    return LogisticRegressionCV(
        Cs=tried,
        cv=list(inner),
        fit_intercept=fit_intercept,
        l1_ratios=(0.0,),
        max_iter=_MAX_ITERATIONS,
        scoring=_log_likelihood,
        use_legacy_attributes=False,
    )


def _log_likelihood(model: Any, features_RF: Features, positive_R: NDArray[Any]) -> float:
    """The mean over rows; scikit-learn's own scorer takes longer than the fit."""
    margins = (features_RF @ model.coef_.T).ravel() + model.intercept_
    return -float(np.logaddexp(0.0, np.where(positive_R > 0, -margins, margins)).mean())


def _scaled(features_RF: Features, model: Any, *, centred: bool = True) -> Any:
    """A pipeline that standardises activations; counts stay counts, since a rare token is none that matters more."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if _is_sparse(features_RF):
        return make_pipeline(model)
    return make_pipeline(StandardScaler(with_mean=centred), model)


def _fit_quietly(probe: Any, features_RF: Features, positive_R: NDArray[np.bool_]) -> None:
    """Fit where the weakest penalties may not converge in time: others are chosen then."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features_RF, positive_R)


def _is_sparse(features_RF: Features) -> bool:
    return not isinstance(features_RF, np.ndarray)


def _stacked(first_RF: Features, second_RF: Features) -> Features:
    if not _is_sparse(first_RF):
        return np.concatenate([first_RF, second_RF])
    from scipy.sparse import vstack

    return vstack([first_RF, second_RF], format="csr")
