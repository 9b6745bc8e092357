"""From a request's weights to coefficients."""

import json
import math
import pickle
import struct
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eft_server.behaviour.resolve import Behaviours
from eft_server.errors import BehaviourError, UnknownModelError
from eft_server.family.file import ServerConfig

EPSILON = 2.0**-23

CONFIG = ServerConfig.model_validate(
    {
        "name": "fam",
        "base": "./b",
        "references": {"small": "./s", "other": "./o"},
        "experts": {
            "helpful": {"model": "./x", "reference": "small"},
            "harmless": {"model": "./y", "reference": "small"},
            "aligned": {"model": "./z", "reference": "base"},
            "polite": {"model": "./p", "reference": "other"},
        },
        "defaults": {"weights": {"helpful": 1}, "scale": 0.5},
        "aliases": {"calm": {"weights": {"harmless": 1}, "scale": 1, "description": "Calm."}},
        "limits": {"weight": {"min": -2, "max": 2}, "weights": {"polite": {"min": 0, "max": 1}}, "total": 8},
    }
)
BEHAVIOURS = Behaviours(CONFIG)
EXPERTS = tuple(CONFIG.experts)

bounded = st.floats(-1, 1, allow_subnormal=True)
settings = st.fixed_dictionaries({}, optional={name: bounded.map(abs) for name in EXPERTS})


def coefficients(weights, scale=1.0):
    resolved = BEHAVIOURS.resolve("fam", {"weights": weights, "scale": scale})
    return dict(zip(CONFIG.family.names, resolved.coefficients.members, strict=True))


def refusal(eft=None, xargs=None, model="fam"):
    with pytest.raises(BehaviourError) as caught:
        BEHAVIOURS.resolve(model, eft, xargs)
    return caught.value


@given(settings, st.floats(0, 2))
def test_coefficients_always_add_up_to_one(weights, scale):
    values = coefficients(weights, scale).values()
    assert math.isclose(math.fsum(values), 1, abs_tol=EPSILON * math.fsum(map(abs, values)))


@given(settings, st.floats(0, 2))
def test_coefficients_are_float32_numbers_without_negative_zeros(weights, scale):
    for value in coefficients(weights, scale).values():
        assert struct.unpack("<f", struct.pack("<f", value))[0] == value
        assert value != 0 or math.copysign(1, value) == 1


@given(settings, settings, st.floats(0, 2))
def test_coefficients_are_linear_in_the_weights(first, second, scale):
    halves = {name: (first.get(name, 0) + second.get(name, 0)) / 2 for name in EXPERTS}
    one, two, mean = coefficients(first, scale), coefficients(second, scale), coefficients(halves, scale)
    for member in CONFIG.family.names:
        assert math.isclose(mean[member], (one[member] + two[member]) / 2, rel_tol=1e-6, abs_tol=1e-5)


@given(settings, st.floats(0, 1))
def test_scale_multiplies_the_weights(weights, scale):
    scaled = coefficients({name: weight * scale for name, weight in weights.items()})
    assert coefficients(weights, scale) == pytest.approx(scaled, rel=1e-6, abs=1e-6)


def test_each_expert_is_offset_by_its_own_reference():
    assert coefficients({"helpful": 0.5, "harmless": 0.25, "aligned": 0.5, "polite": 1}) == {
        "base": 0.5,
        "small": -0.75,
        "other": -1,
        "helpful": 0.5,
        "harmless": 0.25,
        "aligned": 0.5,
        "polite": 1,
    }


@given(st.floats(-2, 2))
def test_a_reference_cancels_its_only_expert_exactly(weight):
    values = coefficients({"helpful": weight})
    assert values["small"] == -values["helpful"]


@pytest.mark.parametrize("eft", [{"weights": {}}, {"weights": {"helpful": 0, "polite": -0.0}}, {"scale": 0}])
def test_zero_weights_are_the_base_alone(eft):
    # By text, because a negative zero equals a zero.
    assert str(BEHAVIOURS.resolve("fam", eft).coefficients.members) == str(
        BEHAVIOURS.resolve("fam/base").coefficients.members
    )


def test_what_a_request_leaves_out_is_the_models_own():
    plain = BEHAVIOURS.resolve("fam")
    assert (plain.weights["helpful"], plain.scale) == (1.0, 0.5)
    assert BEHAVIOURS.resolve("fam", {}) == plain
    assert BEHAVIOURS.resolve("fam", {"scale": 1}).weights == plain.weights
    assert BEHAVIOURS.resolve("calm").weights["harmless"] == 1.0
    assert BEHAVIOURS.resolve("calm", {"weights": {"helpful": 1}}).weights["harmless"] == 0.0


def test_flat_arguments_mean_the_same_as_the_field():
    field = BEHAVIOURS.resolve("fam", {"weights": {"helpful": 0.7, "polite": 1}, "scale": 2})
    flat = BEHAVIOURS.resolve("fam", xargs={"eft.helpful": 0.7, "eft.polite": 1, "eft.scale": 2})
    assert flat == field
    assert BEHAVIOURS.resolve("fam", xargs={"eft.scale": 2}).weights == BEHAVIOURS.resolve("fam").weights
    assert BEHAVIOURS.resolve("fam", xargs={}) == BEHAVIOURS.resolve("fam")


@pytest.mark.parametrize("index", range(len(CONFIG.family.names)))
def test_a_plain_member_has_a_single_one(index):
    resolved = BEHAVIOURS.resolve(f"fam/{CONFIG.family.names[index]}")
    assert resolved.plain
    assert resolved.coefficients.members == tuple(
        float(position == index) for position in range(len(CONFIG.family.names))
    )


@pytest.mark.parametrize(
    "model", ["", "other", "fam/", "fam/calm", "calm/base", "FAM", "fam/base ", "\ud800", None, 1]
)
def test_an_unknown_model_is_refused_with_the_known_ones(model):
    error = refusal(model=model)
    assert isinstance(error, UnknownModelError)
    assert error.param == "model"
    assert "known: fam, calm, fam/base, fam/small" in str(error)
    str(error).encode("utf-8")


NOT_NUMBERS = [True, False, None, "1", "", [1], {"a": 1}, float("nan"), float("inf"), -float("inf")]
TOO_LARGE = [1e308, -1e308, 10**400, -(10**400), 10**5000, 2.0000001, -2.5, 3]


@pytest.mark.parametrize("value", NOT_NUMBERS + TOO_LARGE, ids=lambda value: str(type(value).__name__))
def test_a_wrong_value_is_refused_at_its_field(value):
    assert refusal({"weights": {"helpful": value}}).param == "eft.weights.helpful"
    assert refusal({"scale": value}).param == "eft.scale"
    assert refusal(xargs={"eft.helpful": value}).param == "vllm_xargs.eft.helpful"
    assert refusal(xargs={"eft.scale": value}).param == "vllm_xargs.eft.scale"


@pytest.mark.parametrize(
    ("eft", "param", "message"),
    [
        ({"weights": {"helpful": True}}, "eft.weights.helpful", "must be a number, not true"),
        ({"weights": {"helpful": "0.5"}}, "eft.weights.helpful", "must be a number, not '0.5'"),
        ({"weights": {"helpful": math.nan}}, "eft.weights.helpful", "must be a finite number, not nan"),
        ({"weights": {"helpful": 1e308}}, "eft.weights.helpful", "1e+308 is out of bounds; allowed: -2 to 2"),
        ({"weights": {"helpful": 2.0000001}}, "eft.weights.helpful", "2.0000001 is out of bounds"),
        ({"weights": {"polite": 1.5}}, "eft.weights.polite", "1.5 is out of bounds; allowed: 0 to 1"),
        ({"scale": -0.5}, "eft.scale", "-0.5 is out of bounds; allowed: 0 to 2"),
        (
            {"weights": {"helpful": 2, "harmless": -2, "polite": 1}, "scale": 2},
            "eft.weights",
            "is 10.0; allowed: up to 8",
        ),
        ({"weights": {"rude": 1}}, "eft.weights.rude", "unknown expert 'rude'; known: helpful, harmless"),
        ({"weights": {"base": 1}}, "eft.weights.base", "unknown expert 'base'"),
        ({"weights": {"small": 1}}, "eft.weights.small", "unknown expert 'small'"),
        ({"weights": [1]}, "eft.weights", "must be an object of numbers by expert, not an array"),
        ({"weights": None}, "eft.weights", "not null"),
        ({"wieghts": {}}, "eft.wieghts", "unknown key 'wieghts'; known: weights, scale"),
        ([], "eft", "must be an object"),
        ("x", "eft", "must be an object"),
        (1, "eft", "must be an object"),
        (False, "eft", "must be an object"),
    ],
)
def test_a_refusal_names_the_value_and_what_is_allowed(eft, param, message):
    error = refusal(eft)
    assert error.param == param
    assert message in str(error)


@pytest.mark.parametrize(
    ("xargs", "param"),
    [
        ({"eft": [1, 0]}, "vllm_xargs.eft"),
        ({"temperature": 1}, "vllm_xargs.temperature"),
        ({"eft.": 1}, "vllm_xargs.eft."),
        ({"eft.rude": 1}, "vllm_xargs.eft.rude"),
        ({"eft.helpful": 1, "other": 2}, "vllm_xargs.other"),
        ([1], "vllm_xargs"),
    ],
)
def test_other_flat_arguments_are_refused(xargs, param):
    assert refusal(xargs=xargs).param == param


def test_both_forms_at_once_are_refused():
    assert refusal({"scale": 1}, {"eft.scale": 1}).param == "eft"


@pytest.mark.parametrize(("eft", "xargs"), [({}, None), ({"scale": 1}, None), (None, {"eft.scale": 1})])
def test_a_plain_member_takes_no_weights(eft, xargs):
    assert "takes no weights" in str(refusal(eft, xargs, model="fam/helpful"))


@pytest.mark.parametrize("model", ["fam", "calm", "fam/helpful", "fam:scale=0.5"])
def test_a_report_may_be_asked_for_beside_any_model(model):
    plain = BEHAVIOURS.resolve(model)
    for report in (True, False):
        for eft, xargs in (({"report": report}, None), (None, {"eft.report": report})):
            assert BEHAVIOURS.resolve(model, eft, xargs) == replace(plain, report=report)


def test_the_base_is_read_for_a_report_even_where_it_does_not_contribute():
    asked = [BEHAVIOURS.resolve("fam/helpful", {"report": report}) for report in (False, True)]
    places = [set(resolved.counting) for resolved in asked]
    assert (0 in places[0], places[1]) == (False, places[0] | {0})


def test_a_report_does_not_make_weights_acceptable_to_a_member():
    assert refusal({"report": True, "scale": 1}, model="fam/helpful").param == "eft"
    assert refusal({"report": True, "scale": 1}, model="fam:scale=0.5").param == "eft"


@given(st.text())
@example("\ud800")
def test_a_refusal_can_always_be_sent_as_utf8(name):
    error = refusal({"weights": {"x" + name: 1}})
    assert len(json.dumps([str(error), error.param], ensure_ascii=False).encode("utf-8")) < 2000


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4)
)
def test_anything_is_either_resolved_within_bounds_or_refused(value):
    try:
        resolved = BEHAVIOURS.resolve("fam", {"weights": {"helpful": value}})
    except BehaviourError:
        return
    assert -2 <= resolved.weights["helpful"] <= 2


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(refusal({"scale": 9})))
    assert (error.param, str(error)) == ("eft.scale", "9 is out of bounds; allowed: 0 to 2")


def test_every_served_model_resolves_to_what_it_announces():
    served = BEHAVIOURS.served_models()
    assert [(m.id, m.kind) for m in served[:3]] == [
        ("fam", "composite"),
        ("calm", "alias"),
        ("fam/base", "member"),
    ]
    assert len(served) == 2 + len(CONFIG.family.names)
    for model in served:
        resolved = BEHAVIOURS.resolve(model.id)
        assert (resolved.weights, resolved.scale) == (model.weights, model.scale)


def test_served_models_announce_the_bounds_that_apply():
    composite, alias, member = BEHAVIOURS.served_models()[:3]
    assert composite.bounds["weights"]["polite"] == {"min": 0.0, "max": 1.0}
    assert composite.bounds["weights"]["helpful"] == {"min": -2.0, "max": 2.0}
    assert (composite.bounds["scale"], composite.bounds["total"]) == ({"min": 0.0, "max": 2.0}, 8.0)
    assert alias.description == "Calm."
    assert member.bounds is None
