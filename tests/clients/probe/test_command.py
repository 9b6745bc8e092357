"""`eft probe` against a server that follows the contract: what is asked, kept, and said."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from eft_client.errors import EftError
from eft_client.exits import EXIT_WRONG_INPUT
from eft_client.probe import store
from eft_client.probe.errors import ProbeError
from eft_client.probe.options import ProbeOptions
from eft_client.probe.report import ProbeReport
from eft_client.probe.run import run
from eft_client.probe.statistics.measures import ACCURACY, Resampled
from eft_client.probe.summary import _difference
from eft_server.cli import app

from .probed_server import HIDDEN, LAYERS, MEMBERS, TELLING, ProbedServer, pair_lines, states

PAIRS = 40
FAST: dict[str, Any] = dict(folds=3, shuffles=3, repeats=200, layers=str(TELLING))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in pair_lines(PAIRS)))
    return path


def probed(server: ProbedServer, data: Path, output: Path, **options: Any) -> ProbeReport:
    wishes = ProbeOptions(url="http://x/v1", data=str(data), output=output, **(FAST | options))
    return run(wishes, Console(file=(output.parent / "printed.txt").open("w"), width=140), server.opened)


def test_the_finding_is_on_the_page_in_the_file_and_on_the_terminal(data: Path, tmp_path: Path) -> None:
    report = probed(ProbedServer(), data, tmp_path / "out", layers="all")
    [verdict] = report.verdicts
    assert verdict.problem.rows == verdict.problem.prompts == PAIRS
    assert set(verdict.finding.probed["expert"].chosen) == {TELLING}
    assert verdict.differences["accuracy", "reference"].low > 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    [target] = summary["targets"]
    said = target["sentence"]
    values = said.partition(": ")[2].split(", ")
    assert [value.split(" ")[0] for value in values[:4]] == ["expert", "reference", "tokens", "shuffled"]
    assert "more of the preference than its reference's" in said
    layers = {(one["source"], one["layer"]) for one in target["layers"]}
    assert {("expert", 0), ("reference", 2), ("shuffled", 1), ("tokens", 0)} <= layers
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "What this means" in page and "more of the preference than" in page
    printed = " ".join((tmp_path / "printed.txt").read_text().split())
    assert said in printed


def test_lines_beyond_the_limit_are_told(data: Path, tmp_path: Path) -> None:
    report = probed(ProbedServer(), data, tmp_path / "out", limit=30)
    [verdict] = report.verdicts
    assert verdict.problem.rows == 30
    assert "The last 10 lines of the data are not used; --limit is 30." in report.notes


def test_what_is_asked_names_members_site_and_pool_and_ends_the_turn(data: Path, tmp_path: Path) -> None:
    server = ProbedServer()
    probed(server, data, tmp_path / "out", site="mlp", pool="mean", layers="1,-1")
    first, *rest = server.scored
    assert first["activations"]["layers"] == "all" and len(first["items"]) == 1
    assert all(item["end"] for body in server.scored for item in body["items"])
    assert [body["activations"]["layers"] for body in rest] == [[1, 2]] * len(rest)
    assert all(body["activations"]["members"] == ["good", "small"] for body in rest)
    assert rest[0]["activations"] | {"layers": 0, "members": 0} == {
        "layers": 0,
        "members": 0,
        "site": "mlp",
        "pool": "mean",
    }
    assert sum(len(body["items"]) for body in rest) == 2 * PAIRS


def test_requests_shrink_to_what_the_server_allows_and_give_the_same(data: Path, tmp_path: Path) -> None:
    whole = probed(ProbedServer(), data, tmp_path / "one")
    # To find the layers it takes all three of one text: 4 bytes × 8 numbers × 3 layers × 2 members.
    server = ProbedServer(most_bytes=192)
    small = probed(server, data, tmp_path / "two")
    assert {len(body["items"]) for body in server.scored[-PAIRS // 2 :]} == {2}
    assert small.verdicts[0].estimates == whole.verdicts[0].estimates


def test_a_text_that_is_too_large_by_itself_is_asked_layer_by_layer(data: Path, tmp_path: Path) -> None:
    # It has 5 tokens, so 960 bytes.
    server = ProbedServer(most_bytes=700)
    probed(server, data, tmp_path / "out", target=["token-reward"], limit=12, layers="all")
    assert [len(body["activations"]["layers"]) for body in server.scored[-3:]] == [3, 1, 2]
    given = states("good", 2, "q0", pair_lines(1)[0]["rejected"], 5)
    assert np.array_equal(np.load(tmp_path / "out" / "activations" / "none" / "good.2.npy")[:5], given)


def test_kept_activations_are_those_that_were_given(data: Path, tmp_path: Path) -> None:
    probed(
        ProbedServer(), data, tmp_path / "out", target=["token-reward"], max_tokens=2 * 2 * PAIRS, layers="1"
    )
    folder = tmp_path / "out" / "activations" / "none"
    lines = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert all(len(line["tokens"]) == 2 for line in lines)
    assert len({tuple(line["tokens"]) for line in lines}) > 3
    pairs = pair_lines(PAIRS)
    # The rejected answer of a pair comes first.
    array = np.load(folder / f"{MEMBERS[1]}.1.npy")
    assert array.shape == (2 * PAIRS * 2, HIDDEN) and array.dtype == np.float32
    given = states("good", 1, "q0", pairs[0]["rejected"], 5)
    assert np.array_equal(array[:2], given[lines[0]["tokens"]])


def test_a_broken_run_resumes_and_a_whole_one_asks_nothing(data: Path, tmp_path: Path) -> None:
    server = ProbedServer()
    server.breaks_after = 5
    with pytest.raises(EftError):
        probed(server, data, tmp_path / "out")
    again = ProbedServer()
    resumed = probed(again, data, tmp_path / "out")
    asked = sum(len(body["items"]) for body in again.scored)
    # Beside the texts that were missing: one that finds the layers, and four that find the weights unchanged.
    assert asked == 2 * PAIRS - 4 * 8 + 1 + 4
    silent = ProbedServer()
    whole = probed(silent, data, tmp_path / "out")
    [unchanged] = silent.scored
    assert len(unchanged["items"]) == 4 and "activations" not in unchanged
    assert whole.verdicts[0].estimates == resumed.verdicts[0].estimates
    fresh = probed(ProbedServer(), data, tmp_path / "fresh")
    assert fresh.verdicts[0].estimates == whole.verdicts[0].estimates


def test_a_run_that_is_killed_while_it_makes_its_files_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = store._mapped

    def killed(path: Path, mode: str, *shape: tuple[int, int]) -> Any:
        array = make(path, mode, *shape)
        if mode == "w+" and path.name.startswith(f"small.{TELLING}"):
            path.write_bytes(path.read_bytes()[:64])
            raise KeyboardInterrupt
        return array

    with monkeypatch.context() as patched:
        patched.setattr(store, "_mapped", killed)
        with pytest.raises(KeyboardInterrupt):
            probed(ProbedServer(), data, tmp_path / "out")
    resumed = probed(ProbedServer(), data, tmp_path / "out")
    assert resumed.verdicts[0].estimates == probed(ProbedServer(), data, tmp_path / "x").verdicts[0].estimates


@pytest.mark.parametrize(("name", "text"), [("wanted.json", "[]"), ("wanted.json", "{"), ("shapes.json", "")])
def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "out" / "activations" / "last"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    with pytest.raises(ProbeError, match=rf"{name}: no file of eft probe; move .*last away"):
        probed(ProbedServer(), data, tmp_path / "out")


def test_no_member_s_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    examples: dict[str, Any] = dict(texts=1, rows=1, layers=None, checkpoints="", data="", pool="last")
    wanted = store.Wanted(model="m", expert="../../good", reference="/tmp/small", site="mlp", **examples)
    with store.Store(tmp_path / "a" / "b", wanted) as kept:
        read = store.Read(token_ids=[1], tokens=[], rewards=[0.0], over={})
        states = {(name, 0): np.ones((1, 2), dtype=np.float32) for name in wanted.members}
        kept.write("key", 0, read, states)
        assert kept.states("../../good", 0, np.array([0])).tolist() == [[1, 1]]
    assert {path.parent for path in tmp_path.rglob("*.*")} == {tmp_path / "a" / "b"}


def test_another_run_s_activations_are_refused_by_what_differs(data: Path, tmp_path: Path) -> None:
    probed(ProbedServer(), data, tmp_path / "out")
    with pytest.raises(ProbeError, match=r"another run \(site \"residual\", not \"mlp\"\)"):
        probed(ProbedServer(), data, tmp_path / "out", site="mlp")
    with pytest.raises(ProbeError, match=r"another run \(texts 80, not 60; data "):
        probed(ProbedServer(), data, tmp_path / "out", limit=30)


def test_weights_that_changed_behind_the_same_address_are_noticed(data: Path, tmp_path: Path) -> None:
    probed(ProbedServer(), data, tmp_path / "out")
    with pytest.raises(ProbeError, match=r"and is -12\.00 now, so the weights have changed; give another"):
        probed(ProbedServer(sharpness=2.0), data, tmp_path / "out")
    # Rewards whose sum is the same, with other signs.
    with pytest.raises(ProbeError, match="so the weights have changed"):
        probed(ProbedServer(turned=True), data, tmp_path / "out")


def test_a_full_disk_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ProbeError, match=r"last: no room for 2,688 bytes of activations \(No space left"):
        probed(ProbedServer(), data, tmp_path / "out")
    monkeypatch.undo()
    probed(ProbedServer(), data, tmp_path / "out")


def test_answers_that_several_prompts_have_are_told(tmp_path: Path) -> None:
    lines = [line | {"rejected": "It is blue."} for line in pair_lines(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = probed(ProbedServer(), tmp_path / "pairs.jsonl", tmp_path / "out")
    assert any(note.startswith("20 of 40 answers are given to several prompts") for note in report.notes)


def test_equal_shares_differ_by_no_more_than_either_may_be_off() -> None:
    perfect = Resampled(1.0, np.ones(100), 60)
    found = _difference(ACCURACY, perfect, perfect)
    assert found.value == 0 and found.high == -found.low == pytest.approx(1 - 0.9398, abs=1e-3)


def test_the_end_of_the_turn_can_be_left_out(data: Path, tmp_path: Path) -> None:
    server = ProbedServer(ends=False)
    with pytest.raises(ProbeError, match=r"fam has no end-of-turn token; give --no-end"):
        probed(server, data, tmp_path / "out")
    probed(server, data, tmp_path / "without", end=False)
    assert not any(item["end"] for item in server.scored[-1]["items"])


def test_files_of_checkpoints_that_changed_are_named() -> None:
    found = store._difference("checkpoints", "base/m 1 2; good/a 3 4", "base/m 1 2; good/a 3 5")
    assert found == "these checkpoints have changed since: good/a"


def test_a_prompt_that_is_too_long_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"the prompt 'q3': 400: items\.6\.prompt: too long"):
        probed(ProbedServer(too_long="q3"), data, tmp_path / "out")


@pytest.mark.parametrize("command", ["probe", "dynamics"])
def test_a_wrong_family_ends_the_command_in_words(command: str, data: Path, tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text("name: f\nbase: org/model\nmodle: org/model\n")
    arguments = [command, str(family), "--data", str(data), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == EXIT_WRONG_INPUT
    assert "modle: unknown key; known here: name" in done.stderr


def test_a_file_is_no_folder_for_results(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"--output .*pairs\.jsonl: is a file; expected a folder"):
        probed(ProbedServer(), data, data)


def test_a_server_that_gives_no_activations_is_told_which_key_allows_it(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"its family file has to say server\.activations: true"):
        probed(ProbedServer(allowed=False), data, tmp_path / "out")


def test_a_layer_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=f"layer 7: good and small have {LAYERS}"):
        probed(ProbedServer(), data, tmp_path / "out", layers="0,7")


def test_rewards_of_texts_tokens_and_the_composite(data: Path, tmp_path: Path) -> None:
    report = probed(ProbedServer(), data, tmp_path / "out", target=["reward", "token-reward"], over="0.5,2")
    names = [verdict.problem.target for verdict in report.verdicts]
    kinds = ("reward", "token-reward")
    assert names == [f"{kind}{end}" for kind in kinds for end in ("", *_composite("0.5", "2"))]
    by_name = {verdict.problem.target: verdict for verdict in report.verdicts}
    for name in names:
        assert by_name[name].differences["τ", "reference"].low > 0, name
    own, half = (by_name[name].problem.targets_R for name in ("reward", "reward of the composite at 0.5"))
    assert np.allclose(half, own / 2)
    assert by_name["token-reward"].problem.rows == 2 * PAIRS * 5


def _composite(*weights: str) -> list[str]:
    return [f" of the composite at {weight}" for weight in weights]


def test_labels_are_classes_or_numbers(tmp_path: Path) -> None:
    for name, good, bad, kind in (("classes", 1, 0, "class"), ("numbers", 7.5, -2, "number")):
        lines = [
            {"prompt": pair["prompt"], "completion": pair[which], "label": label}
            for pair in pair_lines(30)
            for which, label in (("chosen", good), ("rejected", bad))
        ]
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(json.dumps(line) for line in lines))
        [verdict] = probed(ProbedServer(), data, tmp_path / name).verdicts
        assert (verdict.problem.target, verdict.problem.kind) == ("label", kind)
        assert verdict.differences[verdict.measure.name, "reference"].low > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"target": ["prefrence"]}, "expected one of preference, reward, label, token-reward"),
        ({"target": ["label"]}, "label: 40 lines have none"),
        ({"limit": 3}, "pairs.jsonl: 3 prompts; 3 folds need at least 5"),
        ({"layers": "first"}, "--layers 'first': expected all or numbers"),
        ({"over": "1"}, "--over needs --target reward"),
        ({"over": "nan", "target": ["reward"]}, "finite weights other than 0"),
        ({"over": "much", "target": ["reward"]}, "--over 'much': expected weights"),
        ({"expert": "better"}, "--expert 'better': fam has good"),
        ({"autoencoder": True, "pool": "last"}, "an autoencoder's codes are averaged"),
    ],
)
def test_wrong_options_are_refused_by_name(
    data: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    server = ProbedServer()
    with pytest.raises(ProbeError, match=said):
        probed(server, data, tmp_path / "out", **wrong)
    assert server.scored == []


def test_an_autoencoder_needs_its_package(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_client.probe.options.find_spec", lambda name: None)
    with pytest.raises(ProbeError, match=r"pip install 'eft-server\[sae\]'"):
        probed(ProbedServer(), data, tmp_path / "out", autoencoder=True)


def test_codes_of_an_autoencoder_are_probed_beside_activations(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    report = probed(ProbedServer(), data, tmp_path / "out", autoencoder=True, layers="1", site="mlp")
    [verdict] = report.verdicts
    assert verdict.estimates["accuracy", "expert's codes"].low > 0.6
    codes = verdict.estimates["accuracy", "reference's codes"]
    assert codes.low <= 0.5 <= codes.high
