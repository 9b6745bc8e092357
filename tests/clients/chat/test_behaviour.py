"""What an answer is asked to be, within what the server allows."""

import pytest

from eft_client import WrongArgument
from eft_client.chat.behaviour import Behaviour
from eft_client.results import behaviours_in, model_cards

from ..scripted import MODELS

CARDS = model_cards(MODELS)
FAMILY = behaviours_in(CARDS)
COMPOSITE, ALIAS, MEMBER = (Behaviour(card, FAMILY) for card in CARDS)


def test_a_label_says_what_applies() -> None:
    assert COMPOSITE.label == "demo helpful=0.5 harmless=0.25"
    assert ALIAS.label == "demo-careful harmless=1 scale=0.5"
    assert MEMBER.label == "demo/base"
    changed = COMPOSITE.changed({"weights": {"helpful": 0.7}, "filter": {"kind": "base", "top_p": 0.9}})
    assert changed.label == "demo helpful=0.7 filter=base:0.9"
    assert changed.without("weights").label == "demo helpful=0.5 harmless=0.25 filter=base:0.9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"helpful": 7}}, "helpful=7 is out of bounds; allowed: 0 to 2"),
        ({"weights": {"harmless": -2}}, "allowed: -1 to 1"),
        ({"weights": {"helpfull": 1}}, "there is no expert 'helpfull'; known: helpful, harmless"),
        ({"scale": 3}, "scale=3 is out of bounds; allowed: 0 to 2"),
        ({"amplify": -1}, "amplify=-1 is out of bounds"),
        ({"weights": {"helpful": 1.5, "harmless": -1}}, "2.5 is out of bounds; allowed: up to 2"),
        ({"weights": {"helpful": 1.5}, "scale": 2}, "3 is out of bounds; allowed: up to 2"),
        ({"scale": float("nan")}, "out of bounds"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_bounds(changes, words) -> None:
    with pytest.raises(WrongArgument, match=words):
        COMPOSITE.changed(changes)


def test_a_sum_at_its_bound_is_within() -> None:
    COMPOSITE.changed({"weights": {"helpful": 1.1, "harmless": 0.9}, "scale": 1.0})


def test_members_and_other_servers_models_take_no_weights() -> None:
    with pytest.raises(WrongArgument, match="demo/base is a single member"):
        MEMBER.changed({"weights": {}})
    (card,) = model_cards({"data": [{"id": "llama"}]})
    with pytest.raises(WrongArgument, match="llama is not of an EFT server"):
        Behaviour(card, behaviours_in([card])).changed({"scale": 1})
