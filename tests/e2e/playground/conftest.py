"""One server with API keys and one Chromium for all tests of the page; each gets a browser context to itself."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from ..conftest import Server, start_server, stop_server
from .browser import NO_BROWSER, find_browser
from .visit import PATIENCE_MS, Visit

KEY, OTHER_KEY = "the-first-key", "the-second-key"
SHOTS = Path(os.environ.get("EFT_TEST_SHOTS", Path(__file__).parents[3] / "build" / "playground-shots"))
"""Where the pictures of all states are kept."""

Visiting = Callable[..., Visit]
_BROWSING = pytest.StashKey["Browsing"]()


@dataclass
class Browsing:
    """Playwright and the browser that it drives."""

    playwright: Any
    browser: Browser

    def end(self) -> None:
        self.browser.close()
        self.playwright.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; what needs it is skipped where there is none."""
    return find_browser() or pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def browser(chromium: str, request: pytest.FixtureRequest) -> Browser:
    """Ended by the hook below, which is earlier than the end of the session."""
    playwright = sync_playwright().start()
    # No name but the server's leads anywhere, so that nothing depends on what is answered from outside.
    options = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--force-color-profile=srgb"]
    browser = playwright.chromium.launch(executable_path=chromium, args=options)
    request.session.stash[_BROWSING] = Browsing(playwright, browser)
    expect.set_options(timeout=PATIENCE_MS)
    return browser


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the browser behind the last test of this folder: Playwright's event loop would be that of all later tests."""
    if (nextitem is None or item.path.parent != nextitem.path.parent) and _BROWSING in item.session.stash:
        item.session.stash[_BROWSING].end()
        del item.session.stash[_BROWSING]


@pytest.fixture(scope="session")
def demo(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`eft serve demo` with two API keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n{OTHER_KEY}\n")
    server = start_server("demo", "--api-key-file", str(keys))
    yield server
    assert stop_server(server) == 0


@pytest.fixture
def visiting(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visiting]:
    """Visits to any server, with options of the browser's context; none may have caused a problem in the end."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-")
    visits = []

    def visit(url: str, **options: Any) -> Visit:
        options = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        options.setdefault("permissions", ["clipboard-read", "clipboard-write"])
        context = browser.new_context(**options)
        visits.append((context, Visit(context, url, SHOTS, f"{name}-{len(visits)}" if visits else name)))
        return visits[-1][1]

    yield visit
    for context, made in visits:
        made.shot("end")
        context.close()
    assert [problem for _, made in visits for problem in made.problems] == []


@pytest.fixture
def visit(browser: Browser, demo: Server, visiting: Visiting) -> Visit:
    """The page of the demo server, open and with its key."""
    made = visiting(demo.url)
    made.open(KEY)
    return made
