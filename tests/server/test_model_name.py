"""A behaviour in the model's name means what the field means, and has one canonical form."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eft_client.weights import parse_behaviour
from eft_server.behaviour.model_name import MAX_CHARS
from eft_server.behaviour.resolve import Behaviours
from eft_server.errors import BehaviourError, UnknownModelError
from eft_server.family.file import MAX_EXPERTS, ServerConfig

CONFIG = ServerConfig.model_validate(
    {
        "name": "fam",
        "base": "./b",
        "references": {"small": "./s", "other": "./o"},
        "experts": {
            "helpful": {"model": "./x", "reference": "small"},
            "harmless": {"model": "./y", "reference": "small"},
            "polite": {"model": "./p", "reference": "other"},
        },
        "defaults": {"weights": {"helpful": 1}, "scale": 0.5},
        "aliases": {
            "calm": {"weights": {"harmless": 1}, "scale": 1, "filter": {"kind": "expert", "top_p": 0.9}},
            "loud": {"weights": {"helpful": 1.5, "polite": 0.5}, "amplify": 1.2},
            "open": {"filter": {"kind": "base", "top_p": 1}},
        },
        "limits": {"weight": {"min": -2, "max": 2}, "scale": {"min": -1, "max": 2}, "total": 8},
    }
)
BEHAVIOURS = Behaviours(CONFIG)
SERVED = ("fam", "calm", "loud", "open")

few = st.sampled_from([0.0, -0.0, 1.0, 0.5, 5e-324, 1e-5, 0.1 + 0.2])
weights = st.dictionaries(st.sampled_from(list(CONFIG.experts)), few | st.floats(-1, 1))
filters = st.fixed_dictionaries({"kind": st.sampled_from(["expert", "base"]), "top_p": few | st.floats(0, 1)})
behaviours = st.fixed_dictionaries(
    {},
    optional={
        "weights": weights.filter(bool),
        "scale": few | st.floats(-1, 1),
        "amplify": few | st.floats(0, 2),
        "filter": st.none() | filters.filter(lambda keep: keep["top_p"] <= 1),
    },
)


def behind_a_colon(eft):
    """The text of a behaviour, with every number in one of the forms that JSON has for it."""
    items = list(eft.get("weights", {}).items())
    items += [(key, eft[key]) for key in ("amplify", "scale") if key in eft]
    texts = [f"{name}={json.dumps(value)}" for name, value in items]
    if "filter" in eft:
        keep = eft["filter"]
        texts.insert(0, f"filter={keep['kind']}:{keep['top_p']:.30e}" if keep else "filter=off")
    return ",".join(texts)


def same(one, other):
    settings = ("served", "weights", "scale", "amplify", "filter", "coefficients", "plain")
    return all(getattr(one, key) == getattr(other, key) for key in settings)


def refusal(model, eft=None, xargs=None):
    with pytest.raises(BehaviourError) as caught:
        BEHAVIOURS.resolve(model, eft, xargs)
    return caught.value


@given(st.sampled_from(SERVED), behaviours.filter(bool))
def test_a_name_means_what_the_field_means(served, eft):
    name = f"{served}:{behind_a_colon(eft)}"
    try:
        field = BEHAVIOURS.resolve(served, eft)
    except BehaviourError as error:
        field = None
        problem = str(error)
    if field is None:
        assert str(refusal(name)) == problem
        return
    named = BEHAVIOURS.resolve(name)
    assert same(named, field)
    assert field.model == field.served == named.served == served


@given(st.sampled_from(SERVED), behaviours.filter(bool))
def test_the_name_in_the_answer_is_canonical(served, eft):
    try:
        first = BEHAVIOURS.resolve(f"{served}:{behind_a_colon(eft)}")
    except BehaviourError:
        return
    again = BEHAVIOURS.resolve(first.model)
    assert again.model == first.model
    assert same(again, first)
    assert "=-0," not in f"{first.model},"
    # Equal behaviours have one name, however they were asked for.
    complete = {"weights": first.weights, "scale": first.scale, "amplify": first.amplify}
    keep = first.filter.model_dump() if first.filter else None
    assert BEHAVIOURS.resolve(f"{served}:{behind_a_colon(complete | {'filter': keep})}").model == first.model


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("fam:harmless=0.30,helpful=7e-1", "fam:helpful=0.7,harmless=0.3"),
        ("fam:helpful=1.0", "fam"),
        ("fam:scale=0.5", "fam"),
        ("fam:helpful=1,harmless=0,polite=-0,scale=1", "fam:scale=1"),
        ("fam:polite=-0", "fam:helpful=0"),
        ("fam:filter=base:1", "fam"),
        (
            "fam:filter=base:0.90,amplify=1.10,scale=1,polite=0.001",
            "fam:polite=0.001,scale=1,amplify=1.1,filter=base:0.9",
        ),
        ("calm:filter=off", "calm:filter=off"),
        ("calm:filter=expert:1", "calm:filter=off"),
        ("calm:filter=expert:0.9", "calm"),
        ("loud:amplify=1", "loud:amplify=1"),
        ("open:filter=off", "open"),
        ("open:scale=-0", "open:scale=0"),
    ],
)  # fmt: skip
def test_canonical_names_say_what_differs_in_the_familys_order(name, canonical):
    resolved = BEHAVIOURS.resolve(name)
    assert resolved.model == canonical
    assert "-0.0" not in f"{resolved.weights} {resolved.scale} {resolved.amplify}"


FORM = "is not of the form expert=number, scale=number, amplify=number or filter=expert:0.9"


@pytest.mark.parametrize(
    ("behaviour", "param", "message"),
    [
        ("", "model", f"'' {FORM}"),
        ("helpful", "model", f"'helpful' {FORM}"),
        ("=1", "model", f"'=1' {FORM}"),
        ("helpful=1,", "model", f"'' {FORM}"),
        ("helpful=1,,harmless=1", "model", f"'' {FORM}"),
        ("helpful=1;harmless=1", "model", "'helpful' must be a number such as 0.5, not '1;harmless=1'"),
        ("helpful=1,helpful=1", "model", "'helpful' is named twice"),
        ("scale=1,helpful=1,scale=1", "model", "'scale' is named twice"),
        ("filter=off,filter=off", "model", "'filter' is named twice"),
        ("rude=1", "model.rude", "unknown expert 'rude'; known: helpful, harmless, polite"),
        (" helpful=1", "model. helpful", "unknown expert ' helpful'"),
        ("small=1", "model.small", "unknown expert 'small'"),
        ("top_p=0.9", "model.top_p", "unknown expert 'top_p'"),
        ("coefficients=1", "model.coefficients", "unknown expert 'coefficients'"),
        ("helpful=2.5", "model.helpful", "2.5 is out of bounds; allowed: -2 to 2"),
        ("scale=3", "model.scale", "3.0 is out of bounds; allowed: -1 to 2"),
        ("amplify=1000000", "model.amplify", "1000000.0 is out of bounds; allowed: 0 to 2"),
        ("helpful=2,harmless=-2,polite=1,scale=2", "model", "is 10.0; allowed: up to 8"),
        ("polite=0,amplify=1.5", "model.amplify", "needs a weight other than 0"),
        ("filter=", "model.filter", "'' is not a filter; expected expert:TOP_P or base:TOP_P"),
        ("filter=expert", "model.filter", "'expert' is not a filter"),
        ("filter=expert:x", "model.filter", "'expert:x' is not a filter"),
        ("filter=rude:0.9", "model.filter", "'rude:0.9' is not a filter"),
        ("filter=expert:1.5", "model.filter", "1.5 is out of bounds; allowed: 0 to 1"),
    ],
)
def test_a_refusal_names_the_place_and_what_is_expected(behaviour, param, message):
    error = refusal(f"fam:{behaviour}")
    assert not isinstance(error, UnknownModelError)
    assert error.param == param
    assert message in str(error)


@pytest.mark.parametrize(
    "number",
    ["", " 1", "1 ", "+1", ".5", "1.", "01", "0x1", "1_0", "1,5"[:1] + "e", "1e999", "-1e999", "9" * 400,
     "nan", "NaN", "inf", "Infinity", "true", "null", "\u0661", "\uff11", "1\u00a0", "--1", "1e1.5", "1/2", "50%"],
)  # fmt: skip
def test_what_json_has_no_finite_number_for_is_refused(number):
    for name in ("helpful", "scale", "amplify"):
        error = refusal(f"fam:{name}={number}")
        assert f"'{name}' must be a number such as 0.5" in str(error)
    assert "is not a filter" in str(refusal(f"fam:filter=expert:{number}"))


@pytest.mark.parametrize("name", ["fam/base:helpful=1", "fam/base:", "fam/helpful:scale=1", "fam/base:rude"])
def test_a_plain_member_takes_no_weights_in_its_name(name):
    member = name.partition(":")[0]
    assert str(refusal(name)) == str(refusal(member, {"weights": {"helpful": 1}}))
    assert refusal(name).param == "model"


@pytest.mark.parametrize("name", ["rude:helpful=1", ":helpful=1", ":", "fam :helpful=1", "FAM:helpful=1"])
def test_a_model_that_is_not_served_is_unknown_whatever_its_weights(name):
    error = refusal(name)
    assert isinstance(error, UnknownModelError)
    assert "known: fam, calm, loud, open, fam/base" in str(error)


def test_weights_are_given_in_one_form():
    assert refusal("fam:scale=1", {"scale": 1}).param == "eft"
    assert refusal("fam:scale=1", {"coefficients": {"base": 1}}).param == "eft"
    assert refusal("fam:scale=1", None, {"eft.scale": 1}).param == "vllm_xargs"
    assert "either in eft or in the model's name" in str(refusal("fam:scale=1", {"weights": {}}))
    assert BEHAVIOURS.resolve("fam:scale=1", {}, {}) == BEHAVIOURS.resolve("fam:scale=1")


def test_a_name_is_bounded_before_it_is_read():
    assert "of 5000 characters is too long" in str(refusal("fam:" + "x" * 4996))
    assert len(str(refusal("x" * 10_000_000))) < 300


def test_the_longest_canonical_name_can_be_sent_again():
    names = [f"x{index:02}".ljust(64, "x") for index in range(MAX_EXPERTS)]
    number = -1.0000000000000002e-101
    family = "f".ljust(64, "f")
    config = ServerConfig.model_validate(
        {
            "name": family,
            "base": "./b",
            "references": {"small": "./s"},
            "experts": dict.fromkeys(names, "./x"),
            "limits": {name: {"min": -2, "max": 2} for name in ("weight", "scale", "amplify")},
        }
    )
    items = [f"{name}={number!r}" for name in (*names, "scale", "amplify")]
    resolved = Behaviours(config).resolve(f"{family}:{','.join(items)},filter=expert:{-number!r}")
    assert 3000 < len(resolved.model) <= MAX_CHARS
    assert Behaviours(config).resolve(resolved.model).model == resolved.model


@given(st.text())
@example("\ud800=1")
@example("helpful=" + "1" * 3000)
@example("helpful=1," * 400)
def test_any_text_behind_a_colon_is_resolved_within_bounds_or_refused_in_a_few_words(text):
    try:
        resolved = BEHAVIOURS.resolve(f"fam:{text}")
    except BehaviourError as error:
        words = json.dumps([str(error), error.param], ensure_ascii=False).encode("utf-8")
        assert len(words) < 500
        return
    assert all(-2 <= weight <= 2 for weight in resolved.weights.values())


@given(st.sampled_from(SERVED), behaviours.filter(bool))
def test_the_clients_commands_read_a_canonical_name_as_the_server_does(served, eft):
    try:
        resolved = BEHAVIOURS.resolve(f"{served}:{behind_a_colon(eft)}")
    except BehaviourError:
        return
    _, colon, behaviour = resolved.model.partition(":")
    assert same(BEHAVIOURS.resolve(served, parse_behaviour(behaviour) if colon else None), resolved)


def test_a_name_with_weights_is_described_and_not_listed():
    described = BEHAVIOURS.served_model("calm:scale=0.5,filter=off")
    plain = BEHAVIOURS.served_model("calm")
    assert plain in BEHAVIOURS.served_models()
    assert (described.id, described.kind, described.scale, described.filter) == (
        "calm:scale=0.5,filter=off",
        "alias",
        0.5,
        None,
    )
    assert described.weights == plain.weights
    assert described.bounds == plain.bounds
    assert described.id not in [model.id for model in BEHAVIOURS.served_models()]
    assert BEHAVIOURS.served_model("fam:helpful=1") == BEHAVIOURS.served_model("fam")
