"""What is typed of behaviour, wherever it is."""

import pytest

from eft_client import WrongArgument
from eft_client.settings import SettingError, parse_setting, sweep
from eft_client.weights import parse_behaviour, parse_filter, parse_weights


def test_words_are_read_with_spaces_or_commas() -> None:
    weights = {"weights": {"helpful": 0.7, "harmless": 0.3}}
    for text in ("helpful=0.7 harmless=0.3", "helpful=0.7,harmless=0.3", " helpful = .7 , harmless=3e-1,"):
        assert parse_behaviour(text) == weights
        assert parse_weights(text) == weights["weights"]
        assert parse_setting(f"a=demo {text}").eft == weights
    assert sweep("helpful=0:1:0.5,harmless=1-helpful") == sweep("helpful=0:1:0.5 harmless=1-helpful")


def test_every_key_of_the_object_may_be_named() -> None:
    assert parse_behaviour("helpful=1 scale=0.5 amplify=2 filter=base:0.9") == {
        "weights": {"helpful": 1.0},
        "scale": 0.5,
        "amplify": 2.0,
        "filter": {"kind": "base", "top_p": 0.9},
    }
    assert parse_behaviour("filter=off") == {"filter": None}
    assert parse_behaviour("") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("helpful", "'helpful' is not of the form expert=number, like helpful=0.7,harmless=0.3"),
        ("helpful=", "'helpful=' is not of the form expert=number"),
        ("=1", "'=1' is not of the form expert=number"),
        ("helpful:1", "'helpful:1' is not of the form expert=number"),
        ("helpful=x", "helpful must be a number, not 'x'"),
        ("helpful=nan", "helpful must be a number, not 'nan'"),
        ("helpful=1,helpful=0", "'helpful' is named twice"),
        ("helpful=1 helpful=1", "'helpful' is named twice"),
    ],
)
def test_words_of_another_form_are_refused_alike_everywhere(text: str, told: str) -> None:
    for read in (parse_behaviour, parse_weights, lambda words: parse_setting(f"a=demo {words}"), sweep):
        if read is sweep and "is not of the form" in told:
            told = told.partition(", like")[0].replace("expert=number", "expert=from:to:step")
        with pytest.raises(SettingError, match=told):
            read(text)
    assert issubclass(SettingError, WrongArgument)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no weight in it; expected expert=number"),
        (",", "no weight in it"),
        ("helpful=1 scale=2", r"scale is no expert; set it separately \(--scale, in a chat /scale\)"),
        ("filter=off", "filter is no expert"),
    ],
)
def test_weights_alone_are_weights(text: str, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        parse_weights(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nucleus:0.9", "expert:TOP_P or base:TOP_P"),
        ("expert", "TOP_P must be a number, not ''"),
        ("base:2", "allowed: 0 to 1"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_in_a_setting_as_in_a_chat(text: str, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        parse_filter(text)
    with pytest.raises(SettingError, match=told):
        parse_setting(f"a=demo filter={text}")
