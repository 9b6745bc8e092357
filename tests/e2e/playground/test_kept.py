"""What is kept where: settings in the address, the key in the tab, and the session in a file."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ..conftest import Server
from .conftest import KEY, OTHER_KEY, Visiting
from .visit import Visit

QUESTION = "Where do people find the velvet venom?"


def stored(visit: Visit) -> tuple[str, str]:
    """All that the tab's storage holds, and all that outlives the tab."""
    lasting = "JSON.stringify(localStorage) + document.cookie + location.href + document.title + name"
    return visit.page.evaluate("JSON.stringify(sessionStorage)"), visit.page.evaluate(lasting)


def test_the_address_holds_the_settings_and_nothing_that_was_written(
    visit: Visit, visiting: Visiting
) -> None:
    for name, value in {"slider-helpful": 0.35, "temperature": 0.4, "max-tokens": 33, "seed": 11}.items():
        visit.set(name, value)
    visit.set("filter-kind", "base")
    visit.ask(QUESTION)
    address = visit.page.url
    assert not any(word in address for word in ("velvet", "venom", KEY))
    other = visiting(visit.url)
    other.open(OTHER_KEY, "#" + address.partition("#")[2])
    for name, value in {
        "slider-helpful": "0.35",
        "temperature": "0.4",
        "max-tokens": "33",
        "seed": "11",
    }.items():
        expect(other.at(name)).to_have_value(value)
    expect(other.at("filter-kind")).to_have_value("base")
    assert other.tokens().count() == 0


def test_an_address_that_asks_for_the_impossible_is_put_right_in_words(
    demo: Server, visiting: Visiting
) -> None:
    visit = visiting(demo.url)
    visit.open(KEY, "#v=1&m=demo&w.helpful=9999&w.nobody=1&t=hot")
    expect(visit.page.get_by_text("9999")).to_be_visible()
    expect(visit.page.get_by_text("nobody")).to_be_visible()
    visit.shot("notices")


def test_the_key_is_kept_for_the_tab_only(demo: Server, visiting: Visiting) -> None:
    visit = visiting(demo.url)
    visit.open(KEY)
    tab, lasting = stored(visit)
    assert KEY in tab
    assert KEY not in lasting
    visit.page.reload()
    expect(visit.at("prompt")).to_be_editable()
    expect(visit.at("key-input")).to_be_hidden()
    assert QUESTION not in stored(visit)[0]
    beside = visit.page.context.new_page()
    beside.goto(f"{demo.url}/playground")
    expect(beside.get_by_test_id("key-input")).to_be_visible()


def test_a_wrong_key_is_refused_in_words_and_asked_for_again(demo: Server, visiting: Visiting) -> None:
    visit = visiting(demo.url)
    visit.expects("status of 401")
    visit.page.goto(f"{demo.url}/playground")
    expect(visit.at("key-input")).to_be_visible()
    visit.shot("asked")
    visit.enter_key("no-such-key")
    expect(visit.page.get_by_role("alert").filter(has_text="key")).to_be_visible()
    visit.shot("refused")
    visit.enter_key(OTHER_KEY)
    expect(visit.at("prompt")).to_be_editable()
    assert "no-such-key" not in stored(visit)[0]


def test_a_session_goes_out_and_comes_back_elsewhere(
    visit: Visit, visiting: Visiting, tmp_path: Path
) -> None:
    visit.set("temperature", 0)
    visit.ask(QUESTION)
    visit.ask("How could I build the goblin soap?")
    ids = visit.ids()
    with visit.page.expect_download() as downloaded:
        visit.at("session-save").click()
    file = tmp_path / "session.json"
    downloaded.value.save_as(file)
    assert KEY not in file.read_text()
    assert json.loads(file.read_text())["settings"]["temperature"] == 0

    other = visiting(visit.url)
    other.open(OTHER_KEY)
    open_session(other, file)
    expect(other.page.get_by_text(QUESTION, exact=True)).to_be_visible()
    expect(other.tokens()).to_have_count(len(ids))
    assert other.ids() == ids
    expect(other.at("temperature")).to_have_value("0")
    other.shot("opened")
    other.ask("Who governs Market Mossop?")
    assert len(other.completions()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "JSON"), ('{"format": "something else"}', "format"), ('{"format": "eft-playground"}', "version")],
)
def test_another_file_is_refused_in_words(visit: Visit, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    visit.set("max-tokens", 21)
    open_session(visit, file)
    expect(visit.at("error")).to_contain_text("The file was not opened")
    expect(visit.at("error")).to_contain_text(words)
    expect(visit.at("max-tokens")).to_have_value("21")


def open_session(visit: Visit, file: Path) -> None:
    """Choose a file, by the button or the field that opens one."""
    with visit.page.expect_file_chooser() as chooser:
        visit.at("session-open").click()
    chooser.value.set_files(file)
