"""What is said of each expert adds up to what the engine computes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_server.api.scoring.contributions import Contributions
from eft_server.behaviour.coefficients import without
from eft_server.behaviour.resolve import Behaviours
from eft_server.family.file import ServerConfig

FAMILY = {
    "name": "demo",
    "base": {"model": "large"},
    "references": {"small": {"model": "small"}, "other": {"model": "other"}},
    "experts": {
        "helpful": {"model": "helpful", "reference": "small"},
        "harmless": {"model": "harmless", "reference": "other"},
        "own": {"model": "own", "reference": "base"},
    },
    "limits": {
        "weight": {"min": -2, "max": 2},
        "amplify": {"min": 0, "max": 3},
        "total": 10,
        "coefficients": {"min": -3, "max": 3},
    },
}
CONFIG = ServerConfig.model_validate(FAMILY)
WEIGHT = st.floats(-2, 2, width=32).map(lambda value: round(value, 3))


def log_probabilities(seed: int) -> dict[str, np.ndarray]:
    logits = np.random.default_rng(seed).normal(0, 3, (len(CONFIG.family.names), 4, 7))
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return dict(zip(CONFIG.family.names, normalised, strict=True))


@given(
    weights=st.fixed_dictionaries({"helpful": WEIGHT, "harmless": WEIGHT, "own": WEIGHT}),
    amplify=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_the_parts_of_a_behaviour_sum_to_the_engines_combination(
    weights: dict[str, float], amplify: float, seed: int
) -> None:
    eft = {
        "weights": weights,
        "scale": 0.7,
        "amplify": amplify if any(weights[e] for e in ("helpful", "harmless")) else 1.0,
    }
    resolved = Behaviours(CONFIG).resolve("demo", eft)
    alone = log_probabilities(seed)
    parts = Contributions.of(CONFIG, resolved, alone, None)
    combined = sum(
        c * alone[m] for m, c in zip(CONFIG.family.names, resolved.coefficients.members, strict=True)
    )
    np.testing.assert_allclose(parts.total, combined, atol=1e-4)
    assert set(parts.experts) == {"helpful", "harmless", "own"}
    assert parts.members == {}


def test_coefficients_and_plain_members_are_divided_by_member() -> None:
    behaviours, alone = Behaviours(CONFIG), log_probabilities(3)
    own = Contributions.of(
        CONFIG, behaviours.resolve("demo", {"coefficients": {"base": 0.5, "own": -1}}), alone, None
    )
    assert set(own.members) == {"base", "own"}
    np.testing.assert_allclose(own.total, 0.5 * alone["base"] - alone["own"])
    plain = Contributions.of(CONFIG, behaviours.resolve("demo/other"), alone, None)
    np.testing.assert_array_equal(plain.total, alone["other"])


def test_what_is_impossible_is_minus_infinity_only_to_those_who_count() -> None:
    alone = log_probabilities(5)
    alone["harmless"][0, 0] = -np.inf
    alone["other"][0, 0] = -np.inf
    resolve = Behaviours(CONFIG).resolve
    counted = Contributions.of(CONFIG, resolve("demo", {"weights": {"harmless": 1}}), alone, None)
    assert counted.total[0, 0] == -np.inf
    assert np.isfinite(counted.total[1:]).all()
    ignored = Contributions.of(CONFIG, resolve("demo", {"weights": {"helpful": 1}}), alone, None)
    assert np.isfinite(ignored.total).all()


@pytest.mark.parametrize("expert", ["helpful", "harmless", "own"])
def test_without_an_expert_the_coefficients_are_those_of_its_weight_at_zero(expert: str) -> None:
    weights = {"helpful": 0.7, "harmless": 0.3, "own": -0.4}
    resolve = Behaviours(CONFIG).resolve
    resolved = resolve("demo", {"weights": weights, "scale": 1.3})
    fewer = without(CONFIG, resolved.coefficients, expert, weights[expert], 1.3)
    expected = resolve("demo", {"weights": weights | {expert: 0}, "scale": 1.3}).coefficients
    assert fewer.members == pytest.approx(expected.members, abs=1e-6)
