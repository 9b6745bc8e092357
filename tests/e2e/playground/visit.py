"""A visit to the page in a fresh browser context: what it shows, and what must not happen meanwhile."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    WebError,
    expect,
)

__all__ = ["PATIENCE_MS", "Visit"]

PATIENCE_MS = 30_000
"""How long something may take to appear on a machine with other work."""


class Visit:
    """One page of one browser context.

    Attributes:
        page: Playwright's page.
        url: The server's.
        problems: What went wrong behind the page so far: requests to other hosts, errors and warnings of the console.
        sent: Path and body of every POST so far.
    """

    def __init__(self, context: BrowserContext, url: str, shots: Path, name: str) -> None:
        self.url = url
        self.problems: list[str] = []
        self.sent: list[tuple[str, Any]] = []
        self._expected: list[str] = []
        self._shots, self._name, self._number = shots, name, 0
        context.set_default_timeout(PATIENCE_MS)
        context.on("request", self._on_request)
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        self.page: Page = context.new_page()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", f"blob:{self.url}/")):
            self.problems.append(f"a request to another host: {request.url}")
        if request.method == "POST":
            self.sent.append((request.url.removeprefix(self.url), request.post_data_json))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(
            re.search(p, message.text) for p in self._expected
        ):
            self.problems.append(f"{message.type} in the console: {message.text}")

    def _on_error(self, error: WebError) -> None:
        self.problems.append(f"uncaught: {error.error}")

    def expects(self, pattern: str) -> None:
        """Let the console hold errors like this from now on, such as Chromium's own line about an answer of 429."""
        self._expected.append(pattern)

    def open(self, key: str | None, fragment: str = "") -> None:
        """Load the page, and give it the key that it asks for."""
        if key is not None:
            self.expects("status of 401")
        self.page.goto(f"{self.url}/playground{fragment}")
        if key is not None:
            self.enter_key(key)
        expect(self.at("prompt")).to_be_editable()

    def enter_key(self, key: str) -> None:
        self.at("key-input").fill(key)
        self.at("key-save").click()

    def at(self, hook: str, **data: object) -> Locator:
        """What carries this `data-testid`, and these other `data-` attributes."""
        rest = "".join(f'[data-{name}="{value}"]' for name, value in data.items())
        return self.page.locator(f'[data-testid="{hook}"]{rest}')

    def ask(self, text: str) -> None:
        """Send a message, or a prompt, and wait for the end of the answer."""
        self.begin(text)
        self.settle()

    def begin(self, text: str) -> None:
        """Send it, and wait for the first token."""
        self.at("prompt").fill(text)
        with self.page.expect_request("**/v1/completions"):
            self.at("send").click()
        expect(self.tokens().first).to_be_visible()

    def settle(self, within_s: float = PATIENCE_MS / 1000) -> None:
        """Wait until nothing is generated any more."""
        expect(self.at("stop")).to_be_hidden(timeout=within_s * 1000)

    def set(self, hook: str, value: float | str) -> None:
        """Give a slider, a field or a choice a value, as a person does who leaves it afterwards."""
        field = self.at(hook)
        if field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))
            field.blur()

    def answers_go_on(self) -> None:
        """Have the server generate up to max tokens: the page cannot ask for it, and the small models end soon."""

        def go_on(route: Route) -> None:
            route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})

        self.page.route("**/v1/completions", go_on)

    def tokens(self) -> Locator:
        """The tokens of the last answer."""
        return self.at("answer").last.get_by_test_id("token")

    def ids(self) -> list[int]:
        """The ids of the answer's tokens."""
        found: list[int] = self.tokens().evaluate_all("all => all.map(token => Number(token.dataset.id))")
        return found

    def text(self) -> str:
        """The answer as plain text."""
        found: str = self.tokens().evaluate_all("all => all.map(token => token.textContent).join('')")
        return found

    def completions(self) -> Sequence[dict[str, Any]]:
        """The bodies of all requests for completions so far."""
        return [body for path, body in self.sent if path == "/v1/completions"]

    def shot(self, state: str) -> None:
        """Keep a picture of this state."""
        self._number += 1
        self.page.screenshot(
            path=self._shots / f"{self._name}-{self._number}-{state}.png", animations="disabled"
        )
