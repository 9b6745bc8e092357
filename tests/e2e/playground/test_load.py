"""The page as it loads: what it takes, from where, and how long until there is something to use."""

from collections.abc import Callable

import httpx
from playwright.sync_api import expect

from ..conftest import Server
from .conftest import KEY, Visiting
from .visit import Visit

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_the_page_needs_no_key_and_everything_else_does(demo: Server) -> None:
    page = httpx.get(f"{demo.url}/playground")
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"] == POLICY
    assert httpx.get(f"{demo.url}/v1/models").status_code == 401


def test_the_watch_sees_requests_to_other_hosts_refused_styles_and_errors(
    demo: Server, visiting: Visiting
) -> None:
    visit = visiting(demo.url)
    visit.open(KEY)
    assert visit.problems == []
    visit.page.evaluate(
        "document.body.append(Object.assign(new Image(), {src: 'http://example.invalid/x.png'}))"
    )
    visit.page.evaluate("document.body.setAttribute('style', 'color: red')")
    with visit.page.context.expect_event("weberror"):
        visit.page.evaluate("setTimeout(() => { throw new Error('thrown on purpose') })")
    seen = "\n".join(visit.problems)
    assert all(part in seen for part in ("http://example.invalid/x.png", "style-src", "thrown on purpose"))
    visit.problems.clear()


def test_the_page_is_painted_and_named(visit: Visit, record_property: Callable[[str, object], None]) -> None:
    assert "playground" in visit.page.title().lower()
    expect(visit.page.get_by_role("heading", level=1)).to_be_visible()
    expect(visit.page.get_by_role("banner")).to_be_visible()
    expect(visit.page.get_by_role("main")).to_be_visible()
    visit.page.reload()
    expect(visit.at("prompt")).to_be_editable()
    usable_ms = visit.page.evaluate("performance.now()")
    (paint_ms,) = visit.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint').map((paint) => paint.startTime)"
    )
    record_property("first_contentful_paint_ms", round(paint_ms))
    record_property("usable_ms", round(usable_ms))
    print(f"first paint {paint_ms:.0f} ms, usable after {usable_ms:.0f} ms")
    visit.shot("loaded")
