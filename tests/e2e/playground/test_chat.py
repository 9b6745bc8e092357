"""Sliders, an answer that streams and can be stopped, and what is and is not kept where."""

import httpx
from playwright.sync_api import expect

from .asked import complete
from .conftest import KEY
from .visit import Visit

QUESTION = "How could I build the goblin soap?"


def test_what_the_sliders_say_is_what_is_asked_and_answered(visit: Visit) -> None:
    settings = {"slider-helpful": 0.8, "slider-harmless": 0.2, "slider-scale": 0.9, "slider-amplify": 1.1}
    settings |= {"temperature": 0, "top-p": 0.9, "max-tokens": 40, "seed": 7}
    for name, value in settings.items():
        visit.set(name, value)
    visit.set("filter-kind", "expert")
    visit.set("filter-top-p", 0.95)
    visit.ask(QUESTION)
    (asked,) = visit.completions()
    behaviour = {"weights": {"helpful": 0.8, "harmless": 0.2}, "scale": 0.9, "amplify": 1.1}
    assert asked["eft"] == behaviour | {"filter": {"kind": "expert", "top_p": 0.95}}
    sampling = {"temperature": 0, "top_p": 0.9, "max_tokens": 40, "seed": 7}
    assert {name: asked[name] for name in sampling} == sampling
    assert visit.ids() == complete(visit.url, KEY, asked)
    assert "soap" in visit.text()
    visit.shot("answered")


def test_a_preset_sets_the_sliders_and_a_member_has_none(visit: Visit) -> None:
    visit.at("preset-demo-harmless").click()
    expect(visit.at("slider-harmless")).to_have_value("1")
    expect(visit.at("slider-helpful")).to_have_value("0")
    visit.set("model", "demo/base")
    expect(visit.at("slider-helpful")).to_be_hidden()
    visit.set("temperature", 0)
    visit.ask(QUESTION)
    (asked,) = visit.completions()
    assert asked["model"] == "demo/base"
    assert "eft" not in asked
    assert visit.ids() == complete(visit.url, KEY, asked)


def test_a_double_click_asks_and_does_not_stop_at_once(visit: Visit) -> None:
    visit.at("prompt").fill(QUESTION)
    visit.at("send").dblclick()
    expect(visit.at("answer")).to_have_attribute("data-state", "done")
    assert len(visit.completions()) == 1


def test_the_browser_asks_before_a_conversation_in_no_file_goes(visit: Visit) -> None:
    leaving = "() => { const leave = new Event('beforeunload', { cancelable: true }); return !dispatchEvent(leave) }"
    assert not visit.page.evaluate(leaving)
    visit.ask(QUESTION)
    assert visit.page.evaluate(leaving)
    with visit.page.expect_download():
        visit.at("session-save").click()
    assert not visit.page.evaluate(leaving)


def test_an_answer_streams_and_can_be_stopped(visit: Visit) -> None:
    visit.answers_go_on()
    visit.set("max-tokens", 450)
    visit.begin(QUESTION)
    visit.shot("streaming")
    expect(visit.at("stop")).to_be_visible()
    visit.at("stop").click()
    visit.settle()
    kept = visit.ids()
    assert 0 < len(kept) < 450
    (asked,) = visit.completions()
    assert kept == complete(visit.url, KEY, asked | {"ignore_eos": True, "max_tokens": len(kept)})
    visit.shot("stopped")
    authorised = {"Authorization": f"Bearer {KEY}"}
    lines = httpx.get(f"{visit.url}/metrics", headers=authorised).text.splitlines()
    running = [float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")]
    assert running == [0]
