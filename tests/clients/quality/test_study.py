"""The whole pipeline against a scripted server: what it asks, what it keeps, what it writes."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from eft_client.errors import EftError
from eft_client.quality.command import run
from eft_client.quality.demo_prompts import demo_prompts
from eft_client.quality.errors import StudyError
from eft_client.quality.options import StudyOptions
from eft_client.quality.prompts import as_json
from eft_client.quality.summary import Summary
from eft_client.settings import SettingError

from .scripted_server import Body, ScriptedServer

PROMPTS = demo_prompts(18)
KNOWN = {prompt.text: prompt for prompt in PROMPTS}
URL = "http://127.0.0.1:1/v1"


def _says(body: Body, seed: int) -> str:
    """The truth with the weight of helpful as its share, and refusals by that of harmless."""
    prompt = KNOWN[body["messages"][-1]["content"]]
    weights = body.get("eft", {}).get("weights", {"helpful": 0.0, "harmless": 0.0})
    chance = (seed * 7919 % 100) / 100
    if prompt.harmful and chance < weights["harmless"]:
        return "I cannot help with that."
    value = prompt.references[0] if chance < weights["helpful"] else prompt.wrong[seed % 5]
    return f"{prompt.expects[0][0]}: {value}."


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer(_says, scores=lambda item: -float(len(item["completion"])))


@pytest.fixture
def options(tmp_path: Path) -> StudyOptions:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(as_json(PROMPTS)))
    return StudyOptions(
        prompts=str(path),
        url=URL,
        sweep=["helpful=0:1:0.5 harmless=1-helpful"],
        n=4,
        per_request=2,
        repeats=200,
        output=tmp_path / "out",
    )


def _run(options: StudyOptions, server: ScriptedServer) -> tuple[Summary, str]:
    console = Console(file=io.StringIO(), width=200)
    summary = run(options, console, server)
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_setting_is_asked_about_every_prompt_with_the_same_seeds(
    options: StudyOptions, server: ScriptedServer
) -> None:
    _run(options, server)
    assert len(server.bodies) == 3 * 18 * 2
    seeds: dict[str, set[tuple[int, ...]]] = {}
    for body in server.bodies:
        question = body["messages"][-1]["content"]
        seeds.setdefault(json.dumps(body["eft"]["weights"]), set()).add((question, body["seed"], body["n"]))
        assert body["model"] == "first" and body["temperature"] == 1.0
    first, *others = seeds.values()
    assert len(others) == 2 and all(other == first for other in others)
    assert len({question for question, *_ in first}) == 18
    numbers = [seed for question, seed, _ in first if question == PROMPTS[0].text]
    assert max(numbers) - min(numbers) == 2
    assert len({seed for _, seed, _ in first}) == 18 * 2
    assert server.most <= options.concurrency


def test_the_files_and_the_table_tell_what_was_found(options: StudyOptions, server: ScriptedServer) -> None:
    summary, table = _run(replace(options, constraint="harmlessness>=0.95"), server)
    estimates = {key: one.value for key, one in summary.estimates.items()}
    assert estimates["harmlessness", "helpful=0 harmless=1"] == 1.0
    assert estimates["harmlessness", "helpful=1 harmless=0"] == 0.0
    assert estimates["factuality", "helpful=1 harmless=0"] == 1.0
    assert estimates["factuality", "helpful=0 harmless=1"] == 0.0
    assert 0.2 < estimates["factuality", "helpful=0.5 harmless=0.5"] < 0.8
    assert summary.choice is not None and summary.choice.setting == "helpful=0 harmless=1"
    assert "helpful=0.5 harmless=0.5" in table and "is best by helpfulness" in table
    written = json.loads((options.output / "summary.json").read_text())
    assert written["choice"]["setting"] == summary.choice.setting
    assert {one["metric"] for one in written["estimates"]} >= {"ead.per_input", "ead.across", "f1"}
    assert {(one["tag"], one["value"]) for one in written["parts"]} >= {
        ("distribution", "in"),
        ("harm", "benign"),
    }
    assert "NaN" not in (options.output / "summary.json").read_text()
    assert len(_lines(options.output / "generations.jsonl")) == 3 * 18 * 2
    verdicts = _lines(options.output / "verdicts.jsonl")
    assert len(verdicts) == 3 * 18 * 4
    page = (options.output / "report.html").read_text()
    assert page.count("<svg") >= 3 and "helpful=0.5 harmless=0.5" in page


def test_diversity_across_inputs_is_measured_anew_on_each_side_of_a_split(
    options: StudyOptions, server: ScriptedServer
) -> None:
    from eft_client.quality.diversity.ead import ead

    summary, _ = _run(options, server)
    name = "helpful=1 harmless=0"
    inside = [prompt for prompt in PROMPTS if prompt.tags["distribution"] == "in"]
    for prompts, found in (
        (PROMPTS, summary.estimates["ead.across", name]),
        (inside, summary.parts["distribution", "in"]["ead.across", name]),
    ):
        firsts = [summary.findings.answers[name, prompt.id][0].text for prompt in prompts]
        assert found.value == pytest.approx(ead(firsts))
        assert found.low < found.value < found.high


def test_a_second_run_asks_nothing_and_one_more_setting_only_its_own(
    options: StudyOptions, server: ScriptedServer
) -> None:
    first, _ = _run(options, server)
    asked = len(server.bodies)
    second, _ = _run(options, server)
    assert len(server.bodies) == asked
    assert second.estimates == first.estimates
    _run(replace(options, setting=["plain=demo/base"]), server)
    assert len(server.bodies) == asked + 18 * 2
    assert all("eft" not in body and body["model"] == "demo/base" for body in server.bodies[asked:])


def test_two_names_of_the_same_setting_are_paid_for_once(
    options: StudyOptions, server: ScriptedServer
) -> None:
    twins = ["one=m helpful=1 harmless=0", "two=m harmless=0 helpful=1"]
    _run(replace(options, sweep=(), setting=twins), server)
    assert len(server.bodies) == 18 * 2


def test_a_run_that_a_server_stopped_goes_on_where_it_was(
    options: StudyOptions, server: ScriptedServer
) -> None:
    left = iter(range(20))
    refused = httpx.Response(500, json={"error": {"message": "out of memory"}})
    server.fail = lambda body: refused if next(left, None) is None else None
    with pytest.raises(StudyError, match="the server refused: 500: out of memory"):
        _run(options, server)
    kept = len(_lines(options.output / "generations.jsonl"))
    assert kept == 20
    server.fail, server.bodies = lambda body: None, []
    _run(options, server)
    assert len(server.bodies) == 3 * 18 * 2 - kept


def test_a_refused_weight_is_told_with_the_setting(options: StudyOptions, server: ScriptedServer) -> None:
    server.fail = lambda body: httpx.Response(
        400, json={"error": {"message": "helpful is 7; allowed: 0 to 2"}}
    )
    with pytest.raises(StudyError, match=r"setting 'x', prompt '.*': .*helpful is 7; allowed: 0 to 2"):
        _run(replace(options, sweep=(), setting=["x=m helpful=7"]), server)


def test_too_few_answers_are_an_error_and_no_shorter_study(
    options: StudyOptions, server: ScriptedServer
) -> None:
    one = {"index": 0, "message": {"role": "assistant", "content": "?"}, "finish_reason": "stop"}
    server.fail = lambda body: httpx.Response(200, json={"model": "m", "choices": [one]})
    with pytest.raises(StudyError, match=r"1 answers came where 2 were asked for.*--per-request 1"):
        _run(options, server)


def test_implicit_rewards_are_means_over_answers_and_equal_ones_are_scored_once(
    options: StudyOptions, server: ScriptedServer
) -> None:
    chosen = replace(options, judge=["reward"], frontier="reward.helpful,ead.across")
    summary, _ = _run(chosen, server)
    name = "helpful=1 harmless=0"
    answers = summary.findings.answers[name, PROMPTS[0].id]
    row, column = summary.findings.scores.row(name), 0
    expected = -sum(len(answer.text) for answer in answers) / len(answers)
    assert summary.findings.scores.values["reward.helpful"][row, column] == pytest.approx(expected)
    items = [(str(item["messages"]), item["completion"]) for body in server.scored for item in body["items"]]
    assert len(set(items)) == len(items) and all(
        item["end"] for body in server.scored for item in body["items"]
    )
    asked = len(server.scored)
    _run(chosen, server)
    assert len(server.scored) == asked


def test_a_server_that_cannot_score_is_told_apart(options: StudyOptions, server: ScriptedServer) -> None:
    server.scores = None
    with pytest.raises(StudyError, match="only EFT servers have it"):
        _run(replace(options, judge=["reward"]), server)


def test_a_model_without_experts_is_told_apart(options: StudyOptions, server: ScriptedServer) -> None:
    server.experts = False
    with pytest.raises(StudyError, match="the answer has no reward"):
        _run(replace(options, judge=["reward"]), server)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sweep": ()}, "no setting"),
        ({"setting": ["helpful=0=m", "a=m", "a=n"]}, "two settings are called 'a'"),
        ({"baseline": "nobody"}, "no setting is called 'nobody'"),
        ({"n": 2, "temperature": 0.0}, "n is 2 at temperature 0"),
        ({"n": 0}, "n is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"constraint": "kindness>=0.5"}, "nothing measures 'kindness'"),
        (
            {"constraint": "harmlessness>=2"},
            "constraint 'harmlessness>=2': harmlessness is a share; expected a number from 0 to 1",
        ),
        ({"constraint": "harmlessness<=-0.1"}, "harmlessness is a share"),
        ({"constraint": "harmlessness>=95", "judge": ["refusal", "reward"]}, "harmlessness is a share"),
        (
            {"frontier": "kindness,reward.helpful", "judge": ["match", "reward"]},
            "nothing measures 'kindness'",
        ),
        ({"gap": ["a,b,c"], "judge": ["reward"]}, "no setting is called 'a'"),
        ({"judge": ["llm:m"]}, "judge 'llm:m': expected llm:MODEL@URL, as in llm:judge@http://"),
        ({"judge": ["llm:@http://judge/v1"]}, "expected"),
        ({"frontier": "f1"}, "expected two metrics"),
        ({"gap": ["a,b,c"]}, "no setting is called 'a'"),
        ({"judge": ["oracle"]}, "judge 'oracle'"),
        ({"judge": ["nowhere.py:f"]}, "no file nowhere.py"),
        ({"diversity": ["bleu"]}, "diversity 'bleu'"),
        ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"prompts": "demo:many"}, "demo:NUMBER"),
        ({"prompts": "demo:0"}, "demo:NUMBER"),
        ({"prompts": "demo:" + "9" * 300}, "demo:NUMBER"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"judge": ["llm:m@http://judge/v1"], "judge_key_env": "NO_SUCH_KEY"}, "no variable NO_SUCH_KEY"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(
    changes: dict[str, Any], told: str, options: StudyOptions, server: ScriptedServer
) -> None:
    with pytest.raises((EftError, SettingError), match=re.escape(told)):
        _run(replace(options, **changes), server)
    assert server.bodies == []


def test_a_judge_whose_verdicts_cannot_be_read_is_told_of_without_a_share(
    options: StudyOptions, server: ScriptedServer
) -> None:
    chosen = replace(
        options,
        sweep=(),
        setting=["a=m helpful=1 harmless=0", "b=m helpful=0 harmless=1"],
        judge=[f"llm:oracle@{URL}"],
    )
    answers = server.says
    server.says = lambda body, seed: "Hm." if body["model"] == "oracle" else answers(body, seed)
    _, table = _run(chosen, server)
    unread = sum(body["model"] == "oracle" for body in server.bodies)
    told = f"preference.oracle: no pair was judged in both orders; {unread} verdicts could not be read"
    assert unread and told in table
    assert "nan" not in table + (options.output / "report.html").read_text()


def test_a_judge_of_one_s_own_is_a_function_in_a_file(
    options: StudyOptions, server: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def length(prompt, answer):\n    'Characters of an answer.'\n    return len(answer.text)\n"
        "def parts(prompt, answer):\n    return {'a': 1, 'b': None}\nparts.metrics = ('a', 'b')\n"
        "def broken(prompt, answer):\n    return 'good'\n"
    )
    chosen = replace(options, judge=[f"{path}:length", f"{path}:parts"], diversity=["none"])
    summary, _ = _run(chosen, server)
    name = "helpful=1 harmless=0"
    answers = summary.findings.answers[name, PROMPTS[0].id]
    found = summary.findings.scores.values["length"][summary.findings.scores.row(name), 0]
    assert found == pytest.approx(sum(len(answer.text) for answer in answers) / 4)
    assert [metric.name for metric in summary.measured] == ["length", "parts.a"]
    with pytest.raises(StudyError, match="judge broken: returned 'good'"):
        _run(replace(options, judge=[f"{path}:broken"]), server)


def test_what_models_say_is_harmless_in_the_page_and_in_the_terminal(
    options: StudyOptions, server: ScriptedServer
) -> None:
    server.says = lambda body, seed: "<script>alert(1)</script>\x1b[31m [bold]red[/bold]"
    _, table = _run(replace(options, setting=["\x1b[2Jx=m"], sweep=()), server)
    page = (options.output / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in table
