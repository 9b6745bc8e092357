"""The command: options become a plan, errors become one message, and its end says what to do next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from eft_client import exits
from eft_client.progress import Progress
from eft_server.cli import app
from eft_train import run
from eft_train.data.reading import DataSource
from eft_train.errors import Interrupted, TrainingError
from eft_train.plan import Plan
from eft_train.recipe import bundled_recipes, load_recipe
from eft_train.run import Trained

NEEDED = ("--base", "some/model", "--data", "rows.jsonl")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments])


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that the command makes, none of which is carried out."""
    made: list[Plan] = []

    def train(plan: Plan, progress: Progress) -> Trained:
        made.append(plan)
        return Trained(plan.out, plan.out / "family.yaml", {}, ("mind the step",))

    monkeypatch.setattr(run, "train", train)
    return made


def test_the_list_is_the_files_of_the_recipes() -> None:
    done = _run("--list")
    assert done.exit_code == 0
    for path in bundled_recipes().values():
        assert path.read_text() in done.stdout


def test_options_become_a_plan(plans: list[Plan], tmp_path: Path) -> None:
    done = _run(
        *("dpo", *NEEDED, "--out", str(tmp_path / "out"), "--full", "--set", "dpo.beta=0.3", "--epochs", "2"),
        *("--seed", "7", "--max-examples", "100", "--checkpoint-every", "32", "--held-out", "0.25"),
        *("--device", "cpu", "--dtype", "float32", "--threads", "3", "--large", "other/model", "--no-verify"),
        *(
            "--revision",
            "abc",
            "--split",
            "test",
            "--subset",
            "en",
            "--data-dir",
            "part",
            "--data-revision",
            "v1",
        ),
    )
    assert done.exit_code == 0, done.output
    assert plans == [
        Plan(
            recipe=load_recipe("dpo", ["dpo.beta=0.3"], epochs=2),
            base="some/model",
            data=DataSource("rows.jsonl", "test", "en", "part", "v1"),
            out=tmp_path / "out",
            revision="abc",
            large="other/model",
            full=True,
            held_out=0.25,
            seed=7,
            max_examples=100,
            checkpoint_every=32,
            device="cpu",
            dtype="float32",
            threads=3,
            verify=False,
        )
    ]


def test_a_file_may_be_held_out(plans: list[Plan], tmp_path: Path) -> None:
    _run("sft", *NEEDED, "--out", str(tmp_path), "--held-out", "apart.jsonl")
    assert plans[0].held_out == DataSource("apart.jsonl")


def test_the_end_says_how_to_serve_and_what_to_know(plans: list[Plan], tmp_path: Path) -> None:
    done = _run("sft", *NEEDED, "--out", str(tmp_path / "mine"))
    assert done.stdout == f"{tmp_path / 'mine'}: to serve it: eft serve {tmp_path / 'mine' / 'family.yaml'}\n"
    assert "warning: mind the step" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpo", "--base", "x"], "error: a training needs RECIPE, --base, --data and --out"),
        (["ppo", *NEEDED, "--out", "x"], "error: 'ppo' is neither a recipe's file nor a recipe"),
        (
            ["dpo", *NEEDED, "--out", "x", "--set", "dpo.gamma=1"],
            "error: --set phases.dpo.gamma: phases.dpo.gamma: unk",
        ),
        (["dpo", *NEEDED, "--out", "x", "--epochs", "0"], "error: --set phases.dpo.epochs: "),
    ],
)
def test_a_wrong_option_is_one_message(arguments: list[str], message: str, plans: list[Plan]) -> None:
    done = _run(*arguments)
    assert (done.exit_code, plans) == (2, [])
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "find_spec", lambda name: None if name in ("trl", "peft") else object())
    done = _run("dpo", *NEEDED, "--out", "x")
    assert done.exit_code == 2
    assert "error: training needs peft, trl: pip install 'eft-server[train]'" in done.stderr


def _raising(error: BaseException) -> Callable[..., Any]:
    def train(*_: Any) -> Any:
        raise error

    return train


def test_an_error_of_the_training_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "train", _raising(TrainingError("rows.jsonl:3: prompt: is empty")))
    done = _run("dpo", *NEEDED, "--out", str(tmp_path / "out"))
    assert (done.exit_code, done.stderr) == (2, "error: rows.jsonl:3: prompt: is empty\n")


@pytest.mark.parametrize(
    ("error", "has_begun", "said"),
    [
        (Interrupted("sft: stopped after 3 of 9 steps"), True, "sft: stopped after 3 of 9 steps; run the same command "
         "with --resume to go on"),
        (KeyboardInterrupt(), True, "interrupted; run the same command with --resume to go on"),
        (KeyboardInterrupt(), False, "interrupted; run the same command again"),
    ],
)  # fmt: skip
def test_an_interruption_says_how_to_go_on(
    error: BaseException, has_begun: bool, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if has_begun:
        (tmp_path / "out" / ".training").mkdir(parents=True)
        (tmp_path / "out" / ".training" / "plan.json").write_text("{}")
    monkeypatch.setattr(run, "train", _raising(error))
    done = _run("dpo", *NEEDED, "--out", str(tmp_path / "out"))
    assert done.exit_code == 130
    assert said in done.stderr


def test_help_needs_no_package_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "find_spec", lambda name: None)
    assert "Fine-tune an expert" in _run("--help").output
