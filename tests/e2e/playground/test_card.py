"""The card of a token says what the API says."""

import math
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from .asked import explain
from .conftest import KEY
from .visit import Visit

CLOSE = 1e-3


def figures(rows: Locator, name: str) -> dict[str, float | None]:
    """`data-value` of each row by another of its attributes."""
    found = rows.evaluate_all(
        "(rows, name) => rows.map((row) => [row.dataset[name], row.dataset.value ?? null])", name
    )
    return {key: None if value in (None, "null", "") else float(value) for key, value in found}


def contributions(told: dict[str, Any]) -> dict[str, float]:
    """All parts of a logit by the names that the card gives them; those that change nothing are not shown."""
    if "members" in told:
        return told["members"]
    extra = {name: told[name] for name in ("amplify", "filter") if told[name]}
    return {"base": told["base"], **told["experts"], **extra}


@pytest.mark.parametrize("setting", ["plain", "filtered", "sampled", "member"])
def test_every_figure_of_a_card_is_the_servers(visit: Visit, setting: str) -> None:
    visit.set("temperature", 0)
    if setting == "filtered":
        visit.set("slider-amplify", 1.2)
        visit.set("filter-kind", "expert")
    elif setting == "sampled":
        visit.set("temperature", 0.7)
        visit.set("top-p", 0.8)
    elif setting == "member":
        visit.set("model", "demo/helpful")
    visit.set("seed", 5)
    visit.ask("How could I build the goblin soap?")
    (asked,) = visit.completions()
    told = explain(visit.url, KEY, asked, visit.ids())
    places = sorted({0, len(told) // 2, len(told) - 1})
    for place in places:
        visit.tokens().nth(place).click()
        card = visit.at("card", index=place)
        expect(card.get_by_test_id("card-top").first).to_be_visible()
        compare(card, told[place])
        visit.shot(f"card-{place}")


def compare(card: Locator, told: dict[str, Any]) -> None:
    rows = figures(card.get_by_test_id("card-top"), "id")
    assert len(rows) >= 5
    likely = {str(row["id"]): math.exp(row["logprob"]) for row in told["top"]}
    likely[str(told["id"])] = math.exp(told["logprob"])
    assert rows == pytest.approx({name: likely[name] for name in rows}, abs=CLOSE)
    assert figures(card.get_by_test_id("card-contribution"), "name") == pytest.approx(
        contributions(told["contributions"]), abs=CLOSE
    )
    members = {name: member["logprob"] for name, member in told["members"].items()}
    assert figures(card.get_by_test_id("card-member"), "name") == pytest.approx(members, abs=CLOSE)
    for row in told["top"][:5]:
        words = card.locator(f"[data-testid=card-top][data-id='{row['id']}']").inner_text()
        assert says(words, 100 * math.exp(row["logprob"])), (words, row["logprob"])


def says(words: str, percent: float) -> bool:
    """Whether the first percentage in a text is this one, as far as its digits go."""
    found = re.search(r"(< )?(\d+(?:\.(\d+))?)(\+)? %", words.replace("\u202f", " ").replace("\u00a0", " "))
    assert found, words
    below, figure, decimals, above = found.groups()
    if below or above:
        return percent < float(figure) if below else percent >= float(figure)
    return abs(percent - float(figure)) <= 0.5 * 10 ** -len(decimals or "") + 100 * CLOSE


def test_hover_and_focus_open_a_card_and_escape_closes_it(visit: Visit) -> None:
    visit.set("temperature", 0)
    visit.ask("How could I build the goblin soap?")
    visit.tokens().nth(1).hover()
    expect(visit.at("card", index=1)).to_be_visible()
    visit.tokens().nth(3).focus()
    expect(visit.at("card", index=3)).to_be_visible()
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.press("Escape")
    expect(visit.at("card")).to_be_hidden()


def test_the_measure_tints_and_is_spoken(visit: Visit) -> None:
    visit.set("seed", 5)
    visit.ask("How could I build the goblin soap?")
    choices = visit.at("measure").locator("option").evaluate_all("all => all.map(option => option.value)")
    assert len(choices) >= 4
    seen = {}
    for choice in choices:
        visit.set("measure", choice)
        visit.page.wait_for_function(
            "() => [...document.querySelectorAll('[data-testid=token]')].every((token) => token.ariaLabel)"
        )
        seen[choice] = visit.tokens().evaluate_all(
            "all => all.map((token) => [token.ariaLabel, getComputedStyle(token).backgroundColor])"
        )
        visit.shot(choice)
    spoken = {choice: tokens[1][0] for choice, tokens in seen.items()}
    assert len(set(spoken.values())) == len(choices)
    tinted = {choice: len({colour for _, colour in tokens}) > 1 for choice, tokens in seen.items()}
    assert not tinted.pop("none")
    tinted.pop("rank")  # All may be the likeliest.
    assert all(tinted.values()), tinted
