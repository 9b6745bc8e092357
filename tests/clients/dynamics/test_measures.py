"""The derived quantities are those of the full distributions, computed in float64."""

import math

import numpy as np
import pytest

from eft_client.dynamics.measures import measured, quantities_of
from eft_client.dynamics.scores import Sums
from eft_client.results import MemberScores, Statistics

V, TOKENS = 4096, 12


def distributions(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of log-probabilities, and the tokens that they predict."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, spread, (TOKENS, V))
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), rng.integers(0, V, TOKENS)


def scores_of(logs: np.ndarray, labels: np.ndarray) -> MemberScores:
    """What a server says of them, in float32 as it does."""
    p = np.exp(logs)
    rest = np.log(np.sort(p, axis=1)[:, :-1].sum(1))
    picked = logs[np.arange(len(labels)), labels]
    return MemberScores(
        logprobs=np.float32(picked).tolist(),
        total=float(picked.sum()),
        ranks=[1] * len(labels),
        top_logprobs=np.float32(logs.max(1)).tolist(),
        statistics=Statistics(
            entropy=np.float32(-(p * logs).sum(1)).tolist(),
            sum_of_squares=np.float32((p * p).sum(1)).tolist(),
            log_rest=np.float32(rest).tolist(),
        ),
    )


@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_they_equal_those_of_the_whole_rows(spread: float) -> None:
    logs, labels = distributions(spread)
    p, one_hot = np.exp(logs), np.eye(V)[labels]
    found = quantities_of(Sums.of(scores_of(logs, labels)), V)
    picked = logs[np.arange(TOKENS), labels]
    norms = np.linalg.norm(p, axis=1)
    expected = {
        "total": picked.sum(),
        "per_token": picked.mean(),
        "argmax": logs.max(1).sum(),
        "argmax_per_token": logs.max(1).mean(),
        "entropy": -(p * logs).sum(1).mean(),
        "log_rest": np.log1p(-np.exp(logs.max(1))).mean(),
        "gap": np.linalg.norm(p - one_hot, axis=1).mean(),
        "energy": (1 - np.exp(picked)).mean(),
        "a_o": math.sqrt(V * norms.mean() ** 2 + V - 2),
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_norm_of_a_is_that_of_the_matrix() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(50))
    matrix = np.eye(50) - np.ones((50, 1)) @ p[None]
    sums = Sums(tokens=1, total=0, argmax=0, entropy=0, log_rest=0, norm=np.linalg.norm(p), gap=0, label=0)
    assert quantities_of(sums, 50)["a_o"] == pytest.approx(np.linalg.norm(matrix), rel=1e-12)


def test_a_certain_row_is_no_nan() -> None:
    certain = MemberScores(
        logprobs=[0.0],
        total=0.0,
        ranks=[1],
        top_logprobs=[0.0],
        statistics=Statistics(entropy=[0.0], sum_of_squares=[0.9999999], log_rest=[-math.inf]),
    )
    sums = Sums.of(certain)
    assert sums.gap == 0.0 and Sums.from_json(sums.as_json()).log_rest == -math.inf
    found = measured(["a"], ["base"], {("a", "chosen"): {"base": sums}}, V)
    assert found.not_finite == 1 and math.isnan(found.values["chosen", "log_rest"][0, 0])
    assert (
        not np.isnan(found.values["chosen", "total"]).any()
        and not np.isnan(found.values["chosen", "a_o"]).any()
    )


def test_a_prompt_without_a_text_has_no_number() -> None:
    sums = Sums(tokens=2, total=-3, argmax=-1, entropy=1, log_rest=-2, norm=1, gap=1, label=1)
    texts = {
        ("a", "chosen"): {"base": sums},
        ("b", "chosen"): {"base": sums},
        ("a", "initial"): {"base": sums},
    }
    found = measured(["a", "b"], ["base"], texts, V)
    assert found.kinds == ["chosen", "initial"]
    assert found.values["initial", "per_token"][0, 0] == -1.5 and math.isnan(
        found.values["initial", "total"][0, 1]
    )
