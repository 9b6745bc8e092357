"""A/B: two settings beside each other, aligned, and what each would have said in the other's text."""

import math
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from .asked import post
from .conftest import KEY
from .visit import Visit

QUESTION = "Where do people find the velvet venom?"


def _compare(visit: Visit, member: str | None = None, **settings: float) -> None:
    """Compare the page's settings, which are these, with a member or what is chosen already."""
    for hook, value in {"temperature": 0, "seed": 3, **settings}.items():
        visit.set(hook, value)
    visit.at("tab-compare").click()
    visit.at("prompt").fill(QUESTION)
    if member:
        visit.set("compare-b-model", member)
    _run(visit)


def _run(visit: Visit) -> None:
    visit.at("compare-run").click()
    expect(visit.at("compare-totals")).to_contain_text("reward of harmless")


def _side(visit: Visit, side: str) -> Locator:
    return visit.at(f"compare-{side}").get_by_test_id("token")


def _ids(visit: Visit, side: str) -> list[int]:
    found: list[int] = _side(visit, side).evaluate_all("all => all.map(token => Number(token.dataset.id))")
    return found


def _asked(visit: Visit, path: str) -> list[dict[str, Any]]:
    return [body for sent, body in visit.sent if sent == path]


def test_two_settings_answer_one_prompt_with_one_seed(visit: Visit) -> None:
    _compare(visit, "demo/helpful", **{"slider-helpful": 0, "slider-harmless": 1})
    one, other = sorted(visit.completions(), key=lambda body: body["model"])
    assert (one["model"], other["model"]) == ("demo", "demo/helpful")
    assert one["prompt"] == other["prompt"]
    assert one["seed"] == other["seed"] == 3
    assert "eft" not in other
    ids = {side: _ids(visit, side) for side in ("a", "b")}
    first = next(at for at, (a, b) in enumerate(zip(ids["a"], ids["b"], strict=False)) if a != b)
    expect(visit.at("first-difference")).to_have_attribute("data-index", str(first))
    for side in ("a", "b"):
        expect(_side(visit, side).nth(first)).to_be_in_viewport()
        expect(visit.at(f"compare-{side}").locator(".first")).to_have_attribute("data-index", str(first))
    visit.shot("compared")


@pytest.mark.parametrize("text", ["a", "b"])
def test_a_token_shows_what_the_other_would_have_said_there(visit: Visit, text: str) -> None:
    _compare(visit, "demo/base")
    other = "b" if text == "a" else "a"
    ids = _ids(visit, text)
    bodies = {"a": "demo", "b": "demo/base"}
    one = next(body for body in visit.completions() if body["model"] == bodies[other])
    for at in (0, len(ids) - 2):
        if text == "a":
            _side(visit, text).nth(at).hover()
        else:
            _side(visit, text).nth(at).focus()
        expect(visit.at("compare-there", side=text, index=at)).to_be_visible()
        rows = visit.at(f"compare-view-{other}").locator("tr")
        expect(rows.first).to_be_visible()
        body = {"model": one["model"], "prompt": one["prompt"], "completion": ids, "span": [at, at + 1]}
        said = post(visit.url, KEY, "/v1/eft/explain", body | ({"eft": one["eft"]} if "eft" in one else {}))
        expected = {row["id"]: math.exp(row["logprob"]) for row in said["tokens"][0]["top"]}
        shown = rows.evaluate_all(
            "all => all.map(row => [Number(row.dataset.id), Number(row.dataset.value)])"
        )
        assert dict(shown) == pytest.approx(
            expected | {ids[at]: math.exp(said["tokens"][0]["logprob"])}, abs=1e-3
        )
    visit.shot("there")
    assert len(_asked(visit, "/v1/eft/explain")) == 2  # The tokens around came with the first.
    assert len(_asked(visit, "/v1/eft/score")) == 2


def test_totals_are_those_of_the_scores(visit: Visit) -> None:
    _compare(visit, "demo/base")
    ids = [_ids(visit, side) for side in ("a", "b")]
    composite = next(body for body in visit.completions() if body["model"] == "demo")
    items = [{"prompt": composite["prompt"], "completion": completion} for completion in ids]
    scored = post(visit.url, KEY, "/v1/eft/score", {"model": "demo", "eft": composite["eft"], "items": items})
    rows = (
        visit.at("compare-totals")
        .locator("tbody tr")
        .evaluate_all("all => all.map(row => row.innerText.split('\\t'))")
    )
    shown = {row[0]: [float(cell.split()[0].replace("−", "-")) for cell in row[1:]] for row in rows}
    assert shown["tokens"] == [len(each) for each in ids]
    for name, of in {
        "log-probability under A": lambda item: item["composite"]["total"],
        "log-probability under B": lambda item: item["members"]["base"]["total"],
        "reward of helpful": lambda item: item["rewards"]["helpful"]["total"],
        "reward of harmless": lambda item: item["rewards"]["harmless"]["total"],
    }.items():
        assert shown[name] == pytest.approx([of(item) for item in scored["data"]], abs=0.011)


def test_equal_settings_say_the_same(visit: Visit) -> None:
    _compare(visit, "demo")
    expect(visit.at("first-difference")).to_contain_text("the same, token for token")
    expect(visit.at("compare-a").locator(".mark")).to_have_count(0)


def test_a_and_b_change_places_and_b_becomes_the_settings(visit: Visit) -> None:
    _compare(visit, "demo-harmless", **{"slider-helpful": 1, "slider-harmless": 0})
    before = [_ids(visit, side) for side in ("a", "b")]
    visit.at("compare-swap").click()
    expect(visit.at("compare-a").locator("h2")).to_contain_text("harmless 1")
    assert [_ids(visit, side) for side in ("b", "a")] == before
    with visit.page.expect_response("**/v1/completions"):
        visit.at("prompt").press("Control+Enter")
    expect(visit.at("compare-totals")).to_contain_text("reward of harmless")
    assert [_ids(visit, side) for side in ("b", "a")] == before
    visit.at("compare-use-b").click()
    visit.at("tab-chat").click()
    expect(visit.at("slider-helpful")).to_have_value("1")
    visit.at("tab-compare").click()
    expect(_side(visit, "a")).to_have_count(len(before[1]))  # The comparison is still there.


def test_both_texts_in_one_show_the_words_that_differ(visit: Visit) -> None:
    _compare(visit, "demo-harmless", **{"slider-helpful": 1, "slider-harmless": 0})
    texts = [
        "".join(_side(visit, side).evaluate_all("all => all.map(token => token.textContent)"))
        for side in ("a", "b")
    ]
    visit.set("compare-view", "merged")
    merged = visit.at("compare-merged")
    for side, text in zip(("a", "b"), texts, strict=True):
        words = merged.evaluate(
            """(merged, other) => {
                const copy = merged.cloneNode(true);
                copy.querySelectorAll(`.version.${other}, .badge, em`).forEach((each) => each.remove());
                return copy.textContent.split(/\\s+/).join("");
            }""",
            "b" if side == "a" else "a",
        )
        assert words == "".join(text.split())
    visit.shot("merged")


def test_a_comparison_can_be_stopped_and_keeps_what_came(visit: Visit) -> None:
    visit.answers_go_on()
    visit.set("max-tokens", 400)
    visit.at("tab-compare").click()
    visit.at("prompt").fill(QUESTION)
    visit.at("compare-run").click()
    expect(_side(visit, "a").nth(3)).to_be_visible()
    expect(visit.at("compare-stop")).to_be_focused()
    visit.page.keyboard.press("Escape")
    expect(visit.at("compare-run")).to_be_visible()
    expect(visit.at("compare-a").get_by_test_id("error")).to_contain_text("Stopped. You stopped this answer.")
    assert 3 < len(_ids(visit, "a")) < 400


def test_a_setting_that_the_server_refuses_is_told_in_words(visit: Visit) -> None:
    visit.expects("status of 400")
    visit.set("slider-helpful", 2)
    visit.set("slider-harmless", 1)
    visit.at("tab-compare").click()
    visit.at("prompt").fill(QUESTION)
    visit.at("compare-run").click()
    expect(visit.at("error").first).to_contain_text("scale times the sum of |weights|")
    expect(_side(visit, "b").first).to_be_visible()
    visit.shot("refused")
