"""For everybody: without a mouse, by the rules for screen readers, in both schemes, on a phone and a wide screen."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from ..conftest import Server
from .conftest import KEY, Visiting
from .visit import Visit

QUESTION = "How could I build the goblin soap?"


def states(visit: Visit) -> Iterator[str]:
    """Walk through what the page can show, and say where one is."""
    visit.page.goto(f"{visit.url}/playground")
    expect(visit.at("key-input")).to_be_visible()
    yield "key"
    visit.enter_key(KEY)
    expect(visit.at("prompt")).to_be_editable()
    yield "loaded"
    visit.ask(QUESTION)
    yield "answered"
    visit.tokens().nth(1).click()
    expect(visit.at("card-top").first).to_be_visible()
    yield "card"
    visit.at("card").locator("[data-testid=card-top]:not(.here)").get_by_test_id("card-pick").first.click()
    visit.settle()
    yield "steered"
    visit.page.keyboard.press("Escape")
    for tab, run, done in (
        ("compare", "compare-run", "compare-totals"),
        ("sweep", "sweep-run", "sweep-plot"),
    ):
        visit.at(f"tab-{tab}").click()
        visit.at("prompt").fill(QUESTION)
        visit.at(run).click()
        expect(visit.at(f"{tab}-status")).to_contain_text("eed ")
        expect(visit.at(done)).to_be_visible()
        yield tab
    visit.at("tab-chat").click()
    visit.at("help").click()
    yield "help"
    visit.page.keyboard.press("Escape")
    visit.page.route("**/tokenize", lambda route: route.abort())
    visit.expects("ERR_FAILED")
    visit.at("prompt").fill(QUESTION)
    visit.at("send").click()
    expect(visit.at("error")).to_be_visible()
    yield "error"


def serious(visit: Visit) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found: dict[str, Any] = Axe().run(visit.page).response
    return [
        f"{violation['id']} ({violation['impact']}): {node['target']} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_no_state_hinders_anybody(demo: Server, visiting: Visiting, scheme: str, width: int) -> None:
    visit = visiting(demo.url, color_scheme=scheme, viewport={"width": width, "height": 740})
    visit.expects("status of 401")
    findings = []
    for state in states(visit):
        visit.shot(state)
        findings += [f"{state}: {finding}" for finding in serious(visit)]
        beyond = visit.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if beyond > 0:
            findings.append(f"{state}: the page is {beyond} px wider than the window")
    assert findings == []


def test_the_schemes_differ_and_can_be_switched(visit: Visit) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before = visit.page.evaluate(colour)
    visit.at("scheme").click()
    assert visit.page.evaluate(colour) != before
    visit.shot("switched")


def test_a_wide_screen_is_used(demo: Server, visiting: Visiting) -> None:
    visit = visiting(demo.url, viewport={"width": 2000, "height": 1000})
    visit.open(KEY)
    visit.ask(QUESTION)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 2000
    visit.shot("wide")


def focused(visit: Visit) -> str:
    """The hook of the element that has the focus, or its name."""
    name: str = visit.page.evaluate(
        """() => { const here = document.activeElement;
            return here.dataset.testid ?? here.closest('[data-testid]')?.dataset.testid ?? here.tagName }"""
    )
    return name


def tab_to(visit: Visit, hook: str, key: str = "Tab") -> list[str]:
    """Press Tab until an element has the focus; what was passed."""
    passed: list[str] = []
    for _ in range(80):
        visit.page.keyboard.press(key)
        passed.append(focused(visit))
        if passed[-1] == hook:
            return passed
    pytest.fail(f"Tab does not lead to {hook}, but to {passed}")


def test_everything_can_be_done_without_a_mouse(demo: Server, visiting: Visiting) -> None:
    visit = visiting(demo.url)
    visit.expects("status of 401")
    visit.page.goto(f"{demo.url}/playground")
    expect(visit.at("key-input")).to_be_focused()
    visit.page.keyboard.type(KEY)
    visit.page.keyboard.press("Enter")
    expect(visit.at("prompt")).to_be_editable()
    passed = tab_to(visit, "prompt")
    for hook in (
        "tab-compare",
        "model",
        "preset-demo-helpful",
        "slider-helpful",
        "temperature",
        "seed",
        "measure",
    ):
        assert hook in passed, passed
    visit.page.keyboard.type(QUESTION)
    visit.page.keyboard.press("Control+Enter")
    expect(visit.tokens().first).to_be_visible()
    visit.settle()
    answer = visit.ids()

    tab_to(visit, "token", "Shift+Tab")
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    expect(visit.at("token", index=1)).to_be_focused()
    expect(visit.at("card", index=1)).to_be_visible()
    visit.page.keyboard.press("Enter")
    expect(visit.at("card-top").first).to_be_visible()
    rows = visit.at("card-top").evaluate_all("rows => rows.map((row) => Number(row.dataset.id))")
    place = next(place for place, token in enumerate(rows, start=1) if token != answer[1])
    visit.page.keyboard.press(str(place))
    expect(visit.at("card", index=2)).to_be_visible()
    visit.settle()
    assert visit.ids()[:2] == [answer[0], rows[place - 1]]
    visit.page.keyboard.press("Control+z")
    assert visit.ids() == answer
    visit.page.keyboard.press("Control+Shift+z")
    assert visit.ids()[1] == rows[place - 1]
    visit.page.keyboard.press("Alt+ArrowUp")
    assert visit.ids() == answer
    visit.page.keyboard.press("?")
    expect(visit.page.get_by_role("dialog")).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.page.get_by_role("dialog")).to_be_hidden()

    for tab, run, done in (
        ("compare", "compare-run", "compare-totals"),
        ("sweep", "sweep-run", "sweep-plot"),
    ):
        tab_to(visit, f"tab-{tab}", "Shift+Tab")
        visit.page.keyboard.press("Enter")
        tab_to(visit, run)
        visit.page.keyboard.press("Enter")
        expect(visit.at(done)).to_be_visible()
    tab_to(visit, "scheme", "Shift+Tab")


def test_a_stream_is_stopped_by_escape_and_told_to_a_screen_reader(visit: Visit) -> None:
    visit.answers_go_on()
    visit.set("max-tokens", 450)
    status = visit.at("status")
    assert status.get_attribute("aria-live") == "polite"
    visit.begin(QUESTION)
    expect(status).to_have_text("Answering")
    visit.page.keyboard.press("Escape")
    visit.settle()
    assert 0 < visit.tokens().count() < 450
