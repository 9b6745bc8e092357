"""The pictures of README and docs, by `make screenshots`: this file is not collected with the tests."""

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from ..conftest import Server
from .conftest import KEY, Visiting
from .visit import Visit

IMAGES = Path(__file__).parents[3] / "docs" / "images"
QUESTION = "How could I build the goblin soap?"
MOST_BYTES = 150_000
COLOURS = 256


def picture(visit: Visit, name: str) -> None:
    """Write what the page shows, in as many colours as such a page has."""
    visit.page.mouse.move(0, 0)
    whole = Image.open(io.BytesIO(visit.page.screenshot(animations="disabled", caret="hide")))
    few = whole.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    path = IMAGES / f"playground-{name}.png"
    few.save(path, optimize=True)
    assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size:,} bytes"


def settled(visit: Visit) -> None:
    """Wait for the answer, and for the explanations of its tokens."""
    visit.settle()
    expect(visit.at("status")).to_have_text("Ready")


def test_chat(visit: Visit) -> None:
    visit.set("temperature", 0)
    visit.set("seed", 1)
    visit.ask("Who governs Market Mossop?")
    settled(visit)
    visit.tokens().first.click()
    visit.at("card").locator("[data-testid=card-top]:not(.here)").get_by_test_id("card-pick").first.click()
    settled(visit)
    visit.page.locator("body").press("Control+z")
    visit.set("measure", "push:helpful")
    visit.tokens().first.click()
    expect(visit.at("card-top").first).to_be_visible()
    visit.page.evaluate("document.querySelectorAll('aside').forEach((aside) => aside.scrollTo(0, 0))")
    picture(visit, "chat")


def test_compare(visit: Visit) -> None:
    for hook, value in {"temperature": 0, "seed": 1, "slider-helpful": 1, "slider-harmless": 0}.items():
        visit.set(hook, value)
    visit.at("tab-compare").click()
    visit.at("prompt").fill(QUESTION)
    visit.set("compare-b-model", "demo-harmless")
    visit.at("compare-run").click()
    expect(visit.at("compare-totals")).to_contain_text("reward of harmless")
    visit.at("compare-a").get_by_test_id("token").nth(6).click()
    expect(visit.at("compare-view-b").locator("tr").first).to_be_visible()
    picture(visit, "compare")


def test_sweep(demo: Server, visiting: Visiting) -> None:
    visit = visiting(demo.url, color_scheme="dark")
    visit.open(KEY)
    visit.set("temperature", 0)
    visit.set("seed", 1)
    visit.at("tab-sweep").click()
    visit.at("prompt").fill("Where do people find the velvet venom?")
    visit.at("sweep-hold").check()
    visit.set("sweep-steps", 11)
    visit.at("sweep-run").click()
    expect(visit.at("sweep-status")).to_contain_text("in all")
    picture(visit, "sweep")
