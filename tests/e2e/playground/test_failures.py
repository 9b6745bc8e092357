"""What the page says when the server is full, stops, dies or cannot be reached; and an answer of 2,000 tokens."""

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from ..conftest import Server, start_server, stop_server, until_status
from ..random_family import write_checkpoint
from .conftest import Visiting
from .test_kept import open_session
from .visit import Visit

FAMILY = """
name: long
base: ./base
references: {small: ./small}
experts: {helpful: ./helpful}
defaults: {weights: {helpful: 0.5}}
server: {max_concurrent_requests: 4, max_waiting_requests: 0, drain_s: 120}
vllm: {dtype: float32, max_model_len: 4096, max_num_seqs: 8, kv_cache_memory_bytes: 134217728}
"""
STREAMED, TOKENS = 450, 2000
PLAIN_IN_VIEW = """() => {
    for (const chunk of document.querySelectorAll('.chunk:not(:has([data-index]))'))
      for (const { left, top, width, height } of chunk.getClientRects()) {
        const place = [left + width / 2, top + height / 2];
        if (document.elementFromPoint(...place)?.closest('.chunk') === chunk) return place;
      }
    return null }"""
"""A place in the window where an answer is plain text, since more tokens are in view than are drawn as such."""
TOKENS_AT = (
    "place => Boolean(document.elementFromPoint(...place)?.closest('.chunk')?.querySelector('[data-index]'))"
)
MOST_ELEMENTS = 400


@pytest.fixture(scope="module")
def long(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without keys, whose random models have room for long answers. The last test here kills it."""
    folder = tmp_path_factory.mktemp("long")
    for seed, name in enumerate(("base", "small", "helpful")):
        write_checkpoint(folder / name, seed, max_position_embeddings=4096)
    file = folder / "family.yaml"
    file.write_text(FAMILY)
    server = start_server(str(file))
    yield server
    if server.process.poll() is None:
        stop_server(server, signal.SIGKILL)


@pytest.fixture
def entering(long: Server, visiting: Visiting) -> Iterator[Visiting]:
    """Visits to that server, whose answers go on up to max tokens."""

    def enter() -> Visit:
        visit = visiting(long.url)
        visit.open(None)
        visit.answers_go_on()
        return visit

    return enter


@contextlib.contextmanager
def full(server: Server) -> Iterator[None]:
    """All places of the server are taken meanwhile."""
    body = {"model": "long", "prompt": "Hello", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120))
        yield


def test_two_thousand_tokens_are_a_few_hundred_elements(entering: Visiting, tmp_path: Path) -> None:
    """An answer grows beyond what the page draws; then a session with a longer one is opened, to save time."""
    visit = entering()
    visit.set("max-tokens", STREAMED)
    visit.begin("Hello")
    visit.page.wait_for_function(
        f"() => document.querySelectorAll('[data-testid=token]').length > {MOST_ELEMENTS // 4}"
    )
    visit.settle(within_s=120)
    elements = [visit.tokens().count()]
    session = saved(visit)
    [piece] = [node for node in session["tree"]["nodes"].values() if node["kind"] == "piece"]
    assert len(piece["tokens"]) == STREAMED
    ids = ([token["id"] for token in piece["tokens"]] * TOKENS)[:TOKENS]
    piece["tokens"] = (piece["tokens"] * TOKENS)[:TOKENS]
    file = tmp_path / "long.json"
    file.write_text(json.dumps(session))
    open_session(visit, file)
    expect(visit.at("answer").last).to_contain_text(f"{TOKENS}")
    for place in (0, 0.5, 1):
        visit.page.evaluate(
            """place => { for (const element of document.querySelectorAll('*'))
                 if (element.scrollHeight > element.clientHeight) element.scrollTop = place * element.scrollHeight }""",
            place,
        )
        visit.page.wait_for_timeout(200)
        elements.append(visit.tokens().count())
    assert all(0 < count <= MOST_ELEMENTS for count in elements), elements
    visit.page.set_viewport_size({"width": 1280, "height": 3000})
    expect(visit.page.locator(".chunk:not(:has([data-index]))").first).to_be_visible()
    place = visit.page.evaluate(PLAIN_IN_VIEW)
    assert place, "more tokens are in view than are drawn as such"
    visit.page.mouse.move(*place)
    visit.page.wait_for_function(TOKENS_AT, arg=place)
    assert visit.tokens().count() <= MOST_ELEMENTS
    visit.shot("long")
    visit.at("copy").last.click()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    answer = httpx.post(f"{visit.url}/detokenize", json={"model": "long", "tokens": ids}, timeout=60)
    assert plain(copied) == plain(answer.json()["prompt"])


def saved(visit: Visit) -> dict[str, Any]:
    """The session that the page saves."""
    with visit.page.expect_download() as download:
        visit.at("session-save").click()
    session: dict[str, Any] = json.loads(download.value.path().read_text())
    return session


def plain(text: str) -> str:
    """A text without special tokens, and without what stands for bytes that are no characters."""
    return re.sub(r"<\|\w+\|>|\ufffd", "", text)


def test_a_full_server_is_called_busy_and_can_be_asked_again(long: Server, entering: Visiting) -> None:
    visit = entering()
    visit.expects("status of 429")
    with full(long):
        visit.at("prompt").fill("Hello")
        visit.at("send").click()
        expect(visit.at("error")).to_contain_text("busy")
        expect(visit.at("error")).to_contain_text("again")
        visit.shot("busy")
    until_status(f"{long.url}/v1/models", 200, 30)
    visit.set("max-tokens", 5)
    visit.at("retry").click()
    expect(visit.tokens()).to_have_count(5)
    expect(visit.at("error")).to_be_hidden()


def test_a_connection_that_breaks_is_called_lost_and_nothing_that_was_written_goes(
    entering: Visiting,
) -> None:
    visit = entering()
    visit.expects("ERR_CONNECTION_RESET|ERR_FAILED|ERR_INTERNET_DISCONNECTED")
    visit.page.context.set_offline(True)
    visit.at("prompt").fill("What was written")
    visit.at("send").click()
    expect(visit.at("error")).to_contain_text("lost")
    expect(visit.at("prompt")).to_have_value("What was written")
    visit.shot("offline")
    visit.page.context.set_offline(False)


def test_a_server_that_stops_and_then_dies_in_the_middle_of_an_answer(
    long: Server, entering: Visiting
) -> None:
    streaming, asking = entering(), entering()
    streaming.set("max-tokens", 3900)
    streaming.begin("Hello")
    long.process.send_signal(signal.SIGTERM)
    until_status(f"{long.url}/readyz", 503, 30)
    asking.expects("status of 503")
    asking.at("prompt").fill("Hello")
    asking.at("send").click()
    expect(asking.at("error")).to_contain_text("stopping")
    asking.shot("stopping")

    expect(streaming.at("stop")).to_be_visible()
    streaming.expects("ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION|ERR_EMPTY_RESPONSE")
    stop_server(long, signal.SIGKILL)
    expect(streaming.at("error")).to_contain_text("lost")
    streaming.settle()
    assert streaming.tokens().count() > 0
    assert len(streaming.completions()) == 1
    streaming.shot("lost")
    asking.expects("ERR_CONNECTION_REFUSED")
    asking.at("prompt").fill("Hello again")
    asking.at("send").click()
    expect(asking.at("error")).to_contain_text("lost")
    expect(asking.at("prompt")).to_have_value("Hello again")
