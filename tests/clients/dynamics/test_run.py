"""The whole command against a family in a transport: texts, numbers, files, resuming, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.options import DynamicsOptions
from eft_client.dynamics.run import _bounds, run
from eft_client.dynamics.summary import DynamicsSummary
from eft_client.report import Page
from eft_server.family.load import load_config

from .family import END, FakeFamily, V, peaked, tokens_of

URL = "http://fake/v1"
#: From even rows to ever peakier ones, at a token that no answer of the data has.
SQUEEZED = {
    "base": peaked(0.15, at=END - 1),
    "after-000100": peaked(0.3, at=END - 1),
    "after-000200": peaked(0.5, at=END - 1),
    "after-000300": peaked(0.8, at=END - 1),
}


def pairs(count: int, first: int) -> str:
    lines = [
        {
            "prompt": [{"role": "user", "content": f"Question {first + i}?"}],
            "chosen": chr(100 + i % 5) * (3 + i + first),
            "rejected": chr(105 + i % 3) * (2 + i + first),
        }
        for i in range(count)
    ]
    return "\n".join(map(json.dumps, lines))


@pytest.fixture(autouse=True)
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, so that only the test of the page draws them."""
    if "page" not in request.node.name:
        monkeypatch.setattr("eft_client.dynamics.run.as_page", lambda *_: Page(""))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trained.jsonl").write_text(pairs(6, 0))
    (tmp_path / "held.jsonl").write_text(pairs(5, 10))
    return tmp_path


def conducted(folder: Path, fake: FakeFamily, /, **options: Any) -> DynamicsSummary:
    fixed: dict[str, Any] = dict(url=URL, data=folder / "trained.jsonl", held_out=folder / "held.jsonl")
    fixed |= dict(output=folder / "out", repeats=200)
    return run(DynamicsOptions(**(fixed | options)), Console(quiet=True), fake)


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "out" / "summary.json").read_text())


def test_every_kind_of_text_is_scored_under_every_checkpoint_at_once(folder: Path) -> None:
    family = FakeFamily(SQUEEZED)
    conducted(folder, family)
    bodies = family.requests["/eft/score"]
    assert len(bodies) == 2 * 11  # The answers of a prompt, then those in disorder.
    assert {body["model"] for body in bodies} == {"fake/base"}
    assert all(body["members"] == list(SQUEEZED) and body["statistics"] for body in bodies)
    assert [len(body["items"]) for body in bodies].count(2) == 11
    [axis] = summary_of(folder)["axes"]
    assert [step["x"] for step in axis["steps"]] == [0, 100, 200, 300]
    kinds = {curve["kind"] for curve in axis["sides"]["held-out"]["curves"]}
    assert kinds == {"chosen", "rejected", "initial", "other_trained", "other_held_out", "permuted", "random"}


def test_its_numbers_are_those_of_the_distributions(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED))
    side = summary_of(folder)["axes"][0]["sides"]["training"]
    curves = {(curve["kind"], curve["quantity"]): curve["levels"] for curve in side["curves"]}
    texts = [[*tokens_of(chr(100 + i % 5) * (3 + i)), END] for i in range(6)]
    for place, p in enumerate(SQUEEZED.values()):
        expected = {
            "total": np.mean([np.log(p[text]).sum() for text in texts]),
            "argmax": np.mean([math.log(p.max()) * len(text) for text in texts]),
            "entropy": -(p * np.log(p)).sum(),
            "log_rest": math.log(1 - p.max()),
            "a_o": math.sqrt(V * (p * p).sum() + V - 2),
        }
        found = {name: curves["chosen", name][place]["value"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-7)


def test_a_squeezed_training_is_called_squeezed_in_words(folder: Path) -> None:
    (folder / "trained.jsonl").write_text(pairs(12, 0))
    (folder / "held.jsonl").write_text(pairs(12, 20))
    conducted(folder, FakeFamily(SQUEEZED))
    said = summary_of(folder)["says"]
    assert any("training prompts: squeezed. The chosen answers have fallen" in sentence for sentence in said)
    assert any("it is squeezed, as every later one is" in sentence for sentence in said)
    assert any("12 training prompts are few" in sentence for sentence in said)


def test_too_few_prompts_for_an_interval_are_never_called_squeezed(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED))
    said = summary_of(folder)["says"]
    assert not any(": squeezed. " in sentence for sentence in said)
    assert any("6 training prompts are few" in sentence for sentence in said)


def test_the_page_has_everything_and_fetches_nothing(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED), over=["after-000300=0:2:1"])
    page = (folder / "out" / "report.html").read_text()
    for heading in ("What happened over training", "Squeezing over the weight of after-000300", "The texts"):
        assert heading in page
    assert page.count("<svg") == 2 * 7
    assert "<image" not in page and "NaN" not in page and "nan" not in page.replace("nanometre", "")


def test_the_composite_is_followed_over_a_weight(folder: Path) -> None:
    family = FakeFamily(SQUEEZED)
    conducted(folder, family, over=["after-000300=0.5:2:0.5"])
    over = summary_of(folder)["axes"][1]
    assert [step["x"] for step in over["steps"]] == [0, 0.5, 1, 1.5, 2]
    curves = {(c["kind"], c["quantity"]): c["levels"] for c in over["sides"]["held-out"]["curves"]}
    trained = summary_of(folder)["axes"][0]["sides"]["held-out"]["curves"]
    alone = {(c["kind"], c["quantity"]): c["levels"] for c in trained}
    for kind in ("chosen", "random"):
        # At weight 0 the composite is the reference here, at 1 the expert.
        assert curves[kind, "total"][0]["value"] == pytest.approx(alone[kind, "total"][0]["value"])
        assert curves[kind, "total"][2]["value"] == pytest.approx(alone[kind, "total"][3]["value"])
    assert curves["chosen", "argmax"][4]["value"] > curves["chosen", "argmax"][2]["value"]


def test_checkpoints_may_be_named_otherwise(folder: Path) -> None:
    family = FakeFamily(
        {"base": peaked(0.2), "late": peaked(0.6), "early": peaked(0.4), "other": peaked(0.5)}
    )
    conducted(folder, family, checkpoints="late=800,early=400")
    [axis] = summary_of(folder)["axes"]
    assert [(step["name"], step["x"]) for step in axis["steps"]] == [
        ("base", 0),
        ("early", 400),
        ("late", 800),
    ]


def test_a_weight_alone_needs_no_checkpoints(folder: Path) -> None:
    family = FakeFamily({"base": peaked(0.2), "polite": peaked(0.6)})
    conducted(folder, family, over=["polite=0:1:0.5"])
    assert [axis["name"] for axis in summary_of(folder)["axes"]] == ["polite"]


def test_a_second_run_asks_nothing_but_one_text(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED))
    first = (folder / "out" / "scores.jsonl").read_bytes()
    again = FakeFamily(SQUEEZED)
    conducted(folder, again)
    assert len(again.requests["/eft/score"]) == 1 and len(again.requests["/eft/score"][0]["items"]) == 1
    assert "/chat/completions" not in again.requests
    assert (folder / "out" / "scores.jsonl").read_bytes() == first


def test_a_killed_run_goes_on_where_it_stopped(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED))
    path = folder / "out" / "scores.jsonl"
    whole = summary_of(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:40]))
    conducted(folder, FakeFamily(SQUEEZED))
    assert summary_of(folder) == whole


def test_another_family_data_or_weights_are_refused_by_name(folder: Path) -> None:
    conducted(folder, FakeFamily(SQUEEZED))
    with pytest.raises(DynamicsError, match='the family was another: "fake", now "other"'):
        conducted(folder, FakeFamily(SQUEEZED, name="other"))
    with pytest.raises(
        DynamicsError, match=r"after-000200 gave the chosen answer .* its weights have changed"
    ):
        conducted(folder, FakeFamily(SQUEEZED | {"after-000200": peaked(0.4, at=END - 1)}))
    (folder / "trained.jsonl").write_text(pairs(7, 0))
    unasked = FakeFamily(SQUEEZED)
    with pytest.raises(DynamicsError, match=r"scores\.jsonl: the data was another"):
        conducted(folder, unasked)
    assert not unasked.requests


def test_rephrases_are_made_only_where_asked_for_and_can_be_given_again(folder: Path) -> None:
    family = FakeFamily(SQUEEZED)
    conducted(folder, family, rephrase=True)
    asked = [body["messages"][0]["content"] for body in family.requests["/chat/completions"]]
    assert sum("in other words" in text for text in asked) == 2 * 11
    written = folder / "out" / "rephrased-training.jsonl"
    line = json.loads(written.read_text().splitlines()[0])
    assert line["chosen_rephrased"] == line["rejected_rephrased"] == "fake/base says"
    again = FakeFamily(SQUEEZED)
    conducted(folder, again, data=written, held_out=None, output=folder / "again")
    assert not any("in other words" in str(body["messages"]) for body in again.requests["/chat/completions"])
    kinds = {curve["kind"] for curve in summary_of(folder)["axes"][0]["sides"]["training"]["curves"]}
    assert {"chosen_rephrased", "rejected_rephrased"} <= kinds


def test_a_family_without_an_end_of_turn_is_told_the_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FakeFamily(SQUEEZED)
    error = {"message": "end: the family has no end-of-turn token; leave it out", "type": "x"}
    monkeypatch.setattr(family, "refusal", error)
    with pytest.raises(DynamicsError, match="fake/base has no end-of-turn token; give --no-end"):
        conducted(folder, family)


def test_pairs_on_one_side_and_single_answers_on_the_other_are_refused_before_scoring(folder: Path) -> None:
    lines = [{"prompt": f"Question {i}?", "completion": "Yes."} for i in range(5)]
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, lines)))
    family = FakeFamily(SQUEEZED)
    with pytest.raises(
        DynamicsError, match=r"held\.jsonl has lines with one answer, and .*trained\.jsonl has pairs"
    ):
        conducted(folder, family)
    assert "/eft/score" not in family.requests


def test_a_file_is_no_folder_for_results(folder: Path) -> None:
    with pytest.raises(DynamicsError, match=r"--output .*held\.jsonl: is a file; expected a folder"):
        conducted(folder, FakeFamily(SQUEEZED), output=folder / "held.jsonl")


def test_the_files_of_a_training_are_found_beside_its_family(folder: Path) -> None:
    (folder / "trained.jsonl").rename(folder / "trained-on.jsonl")
    (folder / "held.jsonl").rename(folder / "held-out.jsonl")
    with pytest.raises(DynamicsError, match=r"checkpoints\.yaml: no such family file"):
        conducted(folder, FakeFamily(SQUEEZED), data=None, family=str(folder / "checkpoints.yaml"))
    (folder / "checkpoints.yaml").touch()
    with pytest.raises(DynamicsError, match="no data: give --data"):
        conducted(
            folder, FakeFamily(SQUEEZED), data=None, held_out=None, family=str(folder / "checkpoints.yaml")
        )
    (folder / "training.json").write_text("{}")
    conducted(folder, FakeFamily(SQUEEZED), data=None, held_out=None, family=str(folder / "checkpoints.yaml"))
    assert {side: len(found) for side, found in summary_of(folder)["prompts"].items()} == {
        "training": 6,
        "held-out": 5,
    }


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        ({"base": peaked(0.2), "polite": peaked(0.3)}, {}, "no expert's name ends in a number; expected"),
        (
            {"base": peaked(0.2), "a-1": peaked(0.3), "b-01": peaked(0.3)},
            {},
            "'a-1' and 'b-01' have the same number",
        ),
        ({"base": peaked(0.2), "a-0": peaked(0.3)}, {}, "0 examples are the reference's"),
        (
            SQUEEZED,
            {"checkpoints": "late=4"},
            "--checkpoints 'late': no expert; the experts are: after-000100",
        ),
        (SQUEEZED, {"checkpoints": "after-000100=x"}, "after-000100=x: no number of examples"),
        (SQUEEZED, {"over": ["nobody=0:1:0.5"]}, "expected one range"),
        (SQUEEZED, {"over": ["after-000100=1"]}, "no range"),
        (SQUEEZED, {"model": "mine"}, "--model 'mine': no family of the server; known: fake"),
        (SQUEEZED, {"url": None}, "neither a family nor --url"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_scored(
    folder: Path, members: Any, options: dict[str, Any], said: str
) -> None:
    family = FakeFamily(members)
    with pytest.raises(DynamicsError) as raised:
        conducted(folder, family, **options)
    assert said in str(raised.value) and "/eft/score" not in family.requests


def test_an_engine_allows_the_largest_weight_of_all_sweeps(folder: Path) -> None:
    options = DynamicsOptions(over=["a=0:5:1", "scale=0:3:1"])
    limits = load_config("demo", list(_bounds(options))).limits
    assert limits.weight.max == limits.scale.max == 5


@pytest.mark.parametrize("side", ["trained", "held"])
def test_one_prompt_has_no_interval(folder: Path, side: str) -> None:
    """Resampled, it would be certain of everything."""
    (folder / f"{side}.jsonl").write_text("\n".join([pairs(1, 0)] * 3))
    with pytest.raises(DynamicsError, match=rf"{side}\.jsonl: 1 prompt; expected 2 or more different ones"):
        conducted(folder, FakeFamily(SQUEEZED))


def test_data_without_rejected_answers_has_no_margin(folder: Path) -> None:
    lines = [{"prompt": f"Question {i}?", "completion": "ab" * (i + 1)} for i in range(4)]
    (folder / "trained.jsonl").write_text("\n".join(map(json.dumps, lines)))
    conducted(folder, FakeFamily(SQUEEZED), held_out=None)
    side = summary_of(folder)["axes"][0]["sides"]["training"]
    assert side["margin"] == [] and side["choice"] is None
    said = summary_of(folder)["says"]
    assert any("without rejected answers there is no margin" in sentence for sentence in said)
    assert any("There are no held-out prompts" in sentence for sentence in said)
