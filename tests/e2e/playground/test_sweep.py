"""A sweep: the same prompt across a weight, with scores, so that one sees where the answer flips."""

from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from .asked import post
from .conftest import KEY
from .visit import Visit

QUESTION = "Where do people find the velvet venom?"


def _sweep(visit: Visit, **choices: float | str) -> None:
    """Sweep, greedily, and wait for the end."""
    visit.set("temperature", 0)
    visit.at("tab-sweep").click()
    visit.at("prompt").fill(QUESTION)
    for name, value in choices.items():
        visit.set(f"sweep-{name}", value)
    visit.at("sweep-run").click()
    expect(visit.at("sweep-row").first).to_be_visible()
    expect(visit.at("sweep-run")).to_be_visible()


def _rows(visit: Visit) -> list[Locator]:
    return visit.at("sweep-row").all()


def _ids(row: Locator) -> list[int]:
    row.scroll_into_view_if_needed()
    expect(row.get_by_test_id("token").first).to_be_visible()
    found: list[int] = row.get_by_test_id("token").evaluate_all(
        "all => all.map(token => Number(token.dataset.id))"
    )
    return found


def _by_weight(visit: Visit, expert: str) -> dict[float, dict[str, Any]]:
    return {body["eft"]["weights"][expert]: body for body in visit.completions()}


def test_rows_are_the_answers_and_the_scores_of_the_api(visit: Visit) -> None:
    visit.set("slider-harmless", 1)
    _sweep(visit, what="weights.helpful", to=1, steps=3)
    asked = _by_weight(visit, "helpful")
    assert sorted(asked) == [0, 0.5, 1]
    assert len({(body["seed"], tuple(body["prompt"])) for body in asked.values()}) == 1
    for row in _rows(visit):
        value = float(row.get_attribute("data-value") or "")
        body, ids = asked[value], _ids(row)
        whole = {name: body[name] for name in body if name != "stream"}
        choice = post(visit.url, KEY, "/v1/completions", whole)["choices"][0]
        assert choice["token_ids"] == ids
        explained = {"model": "demo", "eft": body["eft"], "prompt": body["prompt"], "completion": ids}
        summary = post(visit.url, KEY, "/v1/eft/explain", explained)["summary"]
        shown = row.locator("[data-score]").evaluate_all("all => all.map(cell => Number(cell.dataset.score))")
        means = [summary["rewards"][expert] / len(ids) for expert in ("helpful", "harmless")]
        assert shown == pytest.approx([*means, summary["kl"], summary["logprob"] / len(ids)], abs=1e-3)
    expect(visit.at("sweep-plot").locator("canvas")).to_be_visible()


def test_one_sees_where_the_answer_flips(visit: Visit) -> None:
    visit.at("tab-sweep").click()
    visit.at("sweep-hold").check()
    visit.at("tab-chat").click()
    _sweep(visit, steps=11)
    rows = _rows(visit)
    assert [row.get_attribute("data-value") for row in rows] == [
        str(round(at / 10, 1)).removesuffix(".0") for at in range(11)
    ]
    for body in visit.completions():
        assert sum(body["eft"]["weights"].values()) == pytest.approx(1)
    answers = [_ids(row) for row in rows]
    flips = [at for at in range(1, 11) if answers[at] != answers[at - 1]]
    assert flips, "the demo family refuses at one end and answers at the other"
    for at, row in enumerate(rows):
        assert (row.get_attribute("data-same") == "true") == (at > 0 and at not in flips)
        row.scroll_into_view_if_needed()
        expect(row.locator(".first")).to_have_count(1 if at in flips else 0)
    times = "once" if len(flips) == 1 else f"{len(flips)} times"
    expect(visit.at("sweep-status")).to_contain_text(f"The answer changes {times} from helpful 0 to 1")
    visit.shot("flips")


def test_a_row_gives_its_value_to_the_settings(visit: Visit) -> None:
    _sweep(visit, what="scale", to=1, steps=3)
    visit.at("sweep-row", value=0.5).get_by_test_id("sweep-take").click()
    expect(visit.at("sweep-row", value=0.5)).to_have_attribute("aria-current", "true")
    visit.at("tab-chat").click()
    expect(visit.at("slider-scale")).to_have_value("0.5")
    visit.at("tab-sweep").click()
    expect(visit.at("sweep-row")).to_have_count(3)  # The sweep is still there.


def test_values_stay_within_the_bounds_and_their_total(visit: Visit) -> None:
    visit.set("slider-harmless", 1.5)
    visit.at("tab-sweep").click()
    expect(visit.at("sweep-to")).to_have_value("0.5")
    visit.set("sweep-to", 99)
    expect(visit.at("sweep-to")).to_have_value("0.5")
    visit.set("sweep-steps", 99)
    expect(visit.at("sweep-steps")).to_have_value("11")
    visit.set("sweep-what", "temperature")
    expect(visit.at("sweep-to")).to_have_value("2")


def test_a_plain_member_has_only_a_temperature_to_sweep(visit: Visit) -> None:
    visit.set("model", "demo/base")
    visit.at("tab-sweep").click()
    expect(visit.at("sweep-what").locator("option")).to_have_text(["temperature"])


def test_a_sweep_can_be_stopped_and_keeps_what_came(visit: Visit) -> None:
    visit.answers_go_on()
    visit.set("max-tokens", 400)
    visit.at("tab-sweep").click()
    visit.at("prompt").fill(QUESTION)
    visit.at("sweep-run").click()
    first = visit.at("sweep-row").first
    expect(first.get_by_test_id("token").nth(3)).to_be_visible()
    assert visit.at("sweep-row", state="streaming").count() <= 4
    visit.at("sweep-stop").click()
    expect(visit.at("sweep-run")).to_be_visible()
    expect(first).to_contain_text("kept")
    expect(visit.at("sweep-row").last).to_have_attribute("data-state", "stopped")
    assert len(visit.completions()) <= 4
