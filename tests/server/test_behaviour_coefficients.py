"""The algebra: scale, amplify and filters as coefficients."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eft_server.behaviour.coefficients import BASE_FILTER, EXPERT_FILTER, mix
from eft_server.behaviour.resolve import Behaviours
from eft_server.errors import BehaviourError
from eft_server.family.file import Filter, ServerConfig

FAMILY = {
    "name": "fam",
    "base": "./b",
    "references": {"small": "./s", "other": "./o"},
    "experts": {
        "helpful": {"model": "./x", "reference": "small"},
        "harmless": {"model": "./y", "reference": "small"},
        "polite": {"model": "./p", "reference": "other"},
        "aligned": {"model": "./z", "reference": "base"},
    },
    "defaults": {"weights": {"helpful": 1}},
    "aliases": {"careful": {"filter": {"kind": "expert", "top_p": 0.9}, "amplify": 1.5}},
    "limits": {"coefficients": {"min": -20, "max": 20}, "total": 8},
}
CONFIG = ServerConfig.model_validate(FAMILY)
BEHAVIOURS = Behaviours(CONFIG)
M = len(CONFIG.family.names)
EXPERT = Filter(kind="expert", top_p=0.9)
BASE = Filter(kind="base", top_p=0.9)
ONE = {"helpful": 1.0, "harmless": 0.0, "polite": 0.0, "aligned": 0.0}

weights = st.fixed_dictionaries(dict.fromkeys(CONFIG.experts, st.floats(0, 1, width=32)))


def by_member(values):
    return dict(zip(CONFIG.family.names, values, strict=True))


def test_amplify_scales_what_the_base_adds_and_scale_what_the_expert_adds():
    """The worked example of the README."""
    amplified = by_member(mix(CONFIG, ONE, amplify=2).members)
    scaled = by_member(mix(CONFIG, ONE, scale=2).members)
    assert (amplified["base"], amplified["small"], amplified["helpful"]) == (2, -2, 1)
    assert (scaled["base"], scaled["small"], scaled["helpful"]) == (1, -2, 2)


def test_without_amplification_the_small_models_answer_alone():
    values = by_member(mix(CONFIG, ONE, amplify=0).members)
    assert {member: value for member, value in values.items() if value} == {"helpful": 1}


@given(weights, st.floats(0, 2), st.floats(0, 2))
def test_coefficients_still_add_up_to_one_when_amplified(chosen, scale, amplify):
    assume(any(chosen.values()))
    values = mix(CONFIG, chosen, scale, amplify).members
    assert math.isclose(math.fsum(values), 1, abs_tol=1e-5)


@given(weights, st.floats(0, 2))
def test_the_parts_that_a_filter_divides_add_up_to_the_unfiltered_whole(chosen, amplify):
    assume(any(chosen.values()))
    whole = mix(CONFIG, chosen, 1.0, amplify)
    divided = mix(CONFIG, chosen, 1.0, amplify, EXPERT)
    always, delta = divided.numbers[:M], divided.numbers[M : 2 * M]
    assert divided.members == whole.members
    assert math.isclose(math.fsum(delta), 0, abs_tol=1e-6)
    for total, first, second in zip(whole.members, always, delta, strict=True):
        assert math.isclose(total, first + second, abs_tol=1e-6)


def test_with_one_expert_of_weight_one_the_filter_judges_by_that_expert():
    numbers = mix(CONFIG, ONE, keep=EXPERT).numbers
    assert by_member(numbers[:M]) == dict.fromkeys(CONFIG.family.names, 0) | {"helpful": 1}
    assert by_member(numbers[M : 2 * M]) == dict.fromkeys(CONFIG.family.names, 0) | {"base": 1, "small": -1}
    assert numbers[2 * M :] == (EXPERT_FILTER, pytest.approx(0.9))


def test_several_references_share_the_delta_by_their_experts_weights():
    chosen = {"helpful": 0.5, "harmless": 0.25, "polite": 0.25, "aligned": 0.0}
    delta = by_member(mix(CONFIG, chosen, keep=EXPERT).delta)
    assert (delta["base"], delta["small"], delta["other"]) == (1, -0.75, -0.25)


def test_a_base_filter_leaves_the_coefficients_whole():
    numbers = mix(CONFIG, ONE, keep=BASE).numbers
    assert numbers[:M] == mix(CONFIG, ONE).members
    assert numbers[M:] == (*(0,) * M, BASE_FILTER, pytest.approx(0.9))


@pytest.mark.parametrize("kind", ["expert", "base"])
def test_a_nucleus_of_everything_filters_nothing(kind):
    assert mix(CONFIG, ONE, keep=Filter(kind=kind, top_p=1.0)) == mix(CONFIG, ONE)


@given(weights, st.floats(0, 2), st.floats(0, 2))
def test_the_friendly_fields_are_sugar_over_coefficients(chosen, scale, amplify):
    assume(any(chosen[name] for name in ("helpful", "harmless", "polite")))
    friendly = {"weights": chosen, "scale": scale, "amplify": amplify}
    sugar = BEHAVIOURS.resolve("fam", friendly)
    plain = BEHAVIOURS.resolve("fam", {"coefficients": by_member(sugar.coefficients.members)})
    assert plain.coefficients == sugar.coefficients
    assert plain.own_coefficients == by_member(sugar.coefficients.members)


def test_coefficients_may_have_a_base_filter():
    asked = {"coefficients": {"base": 1, "polite": 0.5}, "filter": {"kind": "base", "top_p": 0.5}}
    resolved = BEHAVIOURS.resolve("fam", asked)
    assert resolved.filter == Filter(kind="base", top_p=0.5)
    assert by_member(resolved.coefficients.members) == dict.fromkeys(CONFIG.family.names, 0) | {
        "base": 1,
        "polite": 0.5,
    }


def test_an_alias_may_amplify_and_filter_and_a_request_may_switch_that_off():
    assert BEHAVIOURS.resolve("careful").filter == EXPERT
    assert BEHAVIOURS.resolve("careful").amplify == 1.5
    assert BEHAVIOURS.resolve("careful", {"filter": None, "amplify": 1}).coefficients == mix(CONFIG, ONE)


def test_flat_arguments_mean_the_same_as_the_field():
    field = {"amplify": 0.5, "filter": {"kind": "expert", "top_p": 0.25}}
    flat = {"eft.amplify": 0.5, "eft.filter": "expert", "eft.top_p": 0.25}
    assert BEHAVIOURS.resolve("fam", xargs=flat) == BEHAVIOURS.resolve("fam", field)


@pytest.mark.parametrize(
    ("eft", "param", "message"),
    [
        ({"amplify": 3}, "eft.amplify", "3 is out of bounds; allowed: 0 to 2"),
        ({"amplify": "x"}, "eft.amplify", "must be a number"),
        ({"filter": "expert"}, "eft.filter", "an object with kind and top_p"),
        ({"filter": {}}, "eft.filter.kind", "null is not a kind of filter; known: expert, base"),
        ({"filter": {"kind": ["expert"], "top_p": 1}}, "eft.filter.kind", "an array is not a kind"),
        ({"filter": {"kind": "base"}}, "eft.filter.top_p", "must be a number, not null"),
        ({"filter": {"kind": "base", "top_p": 1.1}}, "eft.filter.top_p", "allowed: 0 to 1"),
        ({"filter": {"kind": "base", "top_p": 1, "k": 1}}, "eft.filter.k", "known: kind, top_p"),
        ({"weights": {"aligned": 1}, "amplify": 2}, "eft.amplify", "has no effect"),
        ({"weights": {}, "amplify": 2}, "eft.amplify", "a weight other than 0"),
        (
            {"weights": {}, "filter": {"kind": "expert", "top_p": 0.5}},
            "eft.filter",
            "a weight other than 0",
        ),
        ({"coefficients": 1}, "eft.coefficients", "an object of numbers by member"),
        ({"coefficients": {"x": 1}}, "eft.coefficients.x", "unknown member 'x'; known: base, small"),
        ({"coefficients": {"base": 21}}, "eft.coefficients.base", "21 is out of bounds; allowed: -20 to 20"),
        ({"coefficients": {"base": 10**400}}, "eft.coefficients.base", "a huge integer is out of bounds"),
        ({"coefficients": {}}, "eft.coefficients", "at least one"),
        ({"coefficients": {"base": 1e-60}}, "eft.coefficients", "at least one"),
        ({"coefficients": {"base": 1}, "weights": {}}, "eft.weights", "cannot be combined"),
        ({"coefficients": {"base": 1}, "scale": 1}, "eft.scale", "cannot be combined"),
        ({"coefficients": {"base": 1}, "amplify": 1}, "eft.amplify", "cannot be combined"),
        (
            {"coefficients": {"base": 1}, "filter": {"kind": "expert", "top_p": 0.5}},
            "eft.filter",
            "needs weights",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(eft, param, message):
    with pytest.raises(BehaviourError) as caught:
        BEHAVIOURS.resolve("fam", eft)
    assert caught.value.param == param
    assert message in str(caught.value)


def test_coefficients_are_refused_unless_the_operator_allows_them():
    behaviours = Behaviours(ServerConfig.model_validate(FAMILY | {"limits": {"total": 8}}))
    with pytest.raises(BehaviourError, match=r"limits\.coefficients"):
        behaviours.resolve("fam", {"coefficients": {"base": 1}})


def test_a_family_file_with_an_amplification_that_does_nothing_is_refused():
    aliases = {"odd": {"weights": {"aligned": 1}, "amplify": 0.5}}
    with pytest.raises(ValueError, match=r"aliases\.odd\.amplify: has no effect"):
        Behaviours(ServerConfig.model_validate(FAMILY | {"aliases": aliases}))
