"""Other tokens in the place of some, and the tree of all that came of it."""

from typing import Any

import pytest
from playwright.sync_api import expect

from .asked import explain, retokenized
from .conftest import KEY
from .visit import Visit

QUESTION = "How could I build the goblin soap?"


def choose(visit: Visit, first: int, fits: Any) -> tuple[int, int]:
    """A place from `first` on and another token for it that fits, among those that the card has there."""
    told = explain(visit.url, KEY, visit.completions()[0], visit.ids())
    for place in range(first, len(told)):
        for row in told[place]["top"][:8]:
            if row["id"] != told[place]["id"] and not row["text"].startswith("<|") and fits(told, place, row):
                return place, row["id"]
    pytest.fail(f"no token fits in {[token['text'] for token in told]}")


def steer(visit: Visit, place: int, token: int) -> None:
    """Open the card of a token if it is not the one that is open, and pick another there."""
    if visit.at("card", index=place).count() == 0:
        visit.tokens().nth(place).click()
    visit.at("card", index=place).locator(f"[data-testid=card-top][data-id='{token}'] button").first.click()


def inside_a_word(told: list[dict[str, Any]], place: int, row: dict[str, Any]) -> bool:
    before = told[place - 1]["text"] if place else " "
    return row["text"][:1].isalpha() and before[-1:].isalpha()


@pytest.fixture
def asked(visit: Visit) -> Visit:
    """A visit in which the question has been answered greedily."""
    visit.set("temperature", 0)
    visit.ask(QUESTION)
    return visit


def test_three_tokens_in_a_row_are_exactly_those_that_were_picked(visit: Visit) -> None:
    visit.set("temperature", 0)
    visit.ask("What is 12 times 7?")
    asked, prompt = visit, visit.completions()[0]["prompt"]

    def merges_differently(told: list[dict[str, Any]], place: int, row: dict[str, Any]) -> bool:
        kept = told[:place]
        text = "".join(token["text"] for token in [*kept, row])
        ids = [token["id"] for token in kept] + [row["id"]]
        return bool(text) and retokenized(asked.url, KEY, text) != ids

    first = 0
    for kind, fits in (("merges", merges_differently), ("inside", inside_a_word), ("any", lambda *_: True)):
        place, token = choose(asked, first, fits)
        expected = [*asked.ids()[:place], token]
        steer(asked, place, token)
        asked.settle()
        assert asked.completions()[-1]["prompt"] == prompt + expected, kind
        assert asked.ids()[: place + 1] == expected, kind
        expect(asked.at("card", index=place + 1)).to_be_visible()
        asked.shot(kind)
        first = place + 1
    assert len(asked.completions()) == 4


def test_the_card_stays_open_on_the_next_token_while_one_steers_word_after_word(asked: Visit) -> None:
    for place in range(3):
        card = asked.at("card", index=place)
        if place == 0:
            asked.tokens().first.click()
        row = card.locator("[data-testid=card-top]:not(.here)").first
        picked = int(row.get_attribute("data-id") or -1)
        row.get_by_test_id("card-pick").click()
        expect(asked.at("card", index=place + 1)).to_be_visible()
        assert asked.ids()[place] == picked


def test_undo_and_redo_lead_back_and_forth_and_nothing_is_lost(asked: Visit) -> None:
    answers = [asked.ids()]
    for first in (1, 2):
        place, token = choose(asked, first, lambda *_: True)
        steer(asked, place, token)
        asked.settle()
        answers.append(asked.ids())
    assert len({tuple(answer) for answer in answers}) == 3
    asked.shot("three-branches")
    assert asked.at("branch").count() >= 3
    asked.at("undo").click()
    assert asked.ids() == answers[1]
    asked.at("undo").click()
    assert asked.ids() == answers[0]
    asked.at("redo").click()
    assert asked.ids() == answers[1]
    asked.page.locator("body").press("Control+Shift+z")
    assert asked.ids() == answers[2]
    asked.page.locator("body").press("Control+z")
    assert asked.ids() == answers[1]
    asked.page.locator("body").press("Alt+ArrowLeft")
    assert asked.ids() == answers[0]
    asked.page.locator("body").press("Alt+ArrowRight")
    assert asked.ids() == answers[1]
    assert len(asked.completions()) == 3


def test_several_continuations_of_a_point_come_from_one_request(asked: Visit) -> None:
    asked.set("temperature", 1.5)
    kept = asked.ids()[:3]
    asked.tokens().nth(3).click()
    before = asked.at("branch").count()
    asked.at("more").click()
    asked.settle()
    body = asked.completions()[-1]
    assert len(asked.completions()) == 2
    assert body["n"] >= 2
    assert body["prompt"][-3:] == kept
    assert asked.at("branch").count() == before + body["n"]
    here = asked.page.locator("[data-testid=branch][aria-current=true]")
    found = {}
    for _ in range(body["n"]):
        found[here.get_attribute("data-node")] = asked.ids()
        asked.page.locator("body").press("Alt+ArrowRight")
    assert len(found) == body["n"]
    assert all(ids[:3] == kept for ids in found.values())
    asked.shot("continuations")
