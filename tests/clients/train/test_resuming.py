"""Interrupted trainings go on, and end as if nothing had happened."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eft_client.progress import Progress
from eft_train import run as module
from eft_train.data.reading import DataSource
from eft_train.errors import Interrupted, TrainingError
from eft_train.preparation import prepare
from eft_train.refusals import require_same
from eft_train.results.files import locked

from .tiny import SMALL, pairs, plan_of, trained, write_rows

STEPS = ("batch=2", "accumulation=2", "warmup=0.2", "learning_rate=3e-3", "full_learning_rate=3e-3")


def _settings(*phases: str) -> list[str]:
    # Dropout makes the order of random numbers count.
    return [*(f"{phase}.{setting}" for phase in phases for setting in STEPS), "lora.dropout=0.1"]


def _stopped_after(most: int, taken: list[int]) -> Callable[[], object]:
    """Asks for a stop after so many steps, those of earlier phases included, and notes each step that is taken."""

    @contextmanager
    def asking() -> Iterator[Callable[[], bool]]:
        def asked() -> bool:
            taken.append(len(taken) + 1)
            return len(taken) >= most

        yield asked

    return asking


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = (folder / "expert").glob("*model.safetensors")
    return load_file(path)


@pytest.mark.parametrize(
    ("recipe", "full", "stop", "steps"),
    [
        ("sft", False, 3, 4), ("dpo", False, 2, 4), ("dpo", True, 2, 4), ("extend", False, 18, 20),
        ("extend", True, 4, 20), ("arm", False, 2, 4),
    ],
)  # fmt: skip
def test_a_resumed_training_ends_like_one_that_never_stopped(
    recipe: str,
    full: bool,
    stop: int,
    steps: int,
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _settings(*(("sft", "dpo") if recipe == "extend" else (recipe,)))
    whole = trained(recipe, base, data, tmp_path / "whole", *settings, full=full, checkpoint_every=8)
    first, rest = list[int](), list[int]()
    monkeypatch.setattr(module, "interruptible", _stopped_after(stop, first))
    with pytest.raises(Interrupted, match=r"stopped after \d+ of \d+ steps"):
        trained(recipe, base, data, tmp_path / "parts", *settings, full=full, checkpoint_every=8)
    monkeypatch.setattr(module, "interruptible", _stopped_after(1000, rest))
    assert not (tmp_path / "parts" / "family.yaml").exists()
    parts = trained(
        recipe, base, data, tmp_path / "parts", *settings, full=full, checkpoint_every=8, resume=True
    )
    assert (len(first), len(first) + len(rest)) == (stop, steps), "no step is taken twice"
    records = [json.dumps(run.record) for run in (parts, whole)]
    assert records[0] == records[1]
    ours, theirs = _weights(parts.folder), _weights(whole.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    left = [
        sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*")) for run in (parts, whole)
    ]
    assert left[0] == left[1]


@pytest.fixture
def stopped(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training that was interrupted."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "interruptible", _stopped_after(1, []))
        with pytest.raises(Interrupted):
            trained("sft", base, data, tmp_path / "out", *_settings("sft"))
    return tmp_path / "out"


def test_a_half_written_state_is_passed_over(stopped: Path, base: Path, data: Path) -> None:
    broken = stopped / ".training" / "sft" / "checkpoint-3"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_st')
    run = trained("sft", base, data, stopped, *_settings("sft"), resume=True)
    assert run.record["curves"][-1]["examples"] == 16


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["sft.batch=4"], {}, r"--resume: recipe is .*, and was .* when the training began"),
        ([], {"seed": 1}, r"--resume: seed is 1, and was 0 when the training began; give the same command again"),
        ([], {"held_out": 0.3}, r"--resume: held_out is 0.3, and was 0.2"),
        ([], {"resume": False}, r"--out .*: is not empty; add --resume to go on with the training in it"),
    ],
)  # fmt: skip
def test_another_training_does_not_go_on_in_its_folder(
    settings: list[str], options: dict[str, object], message: str, stopped: Path, base: Path, data: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        trained("sft", base, data, stopped, *_settings("sft"), *settings, **{"resume": True, **options})


def test_changed_data_is_noticed(stopped: Path, base: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / data.name
    copy.write_text(data.read_text() + "\n")
    with pytest.raises(TrainingError, match=r"--resume: data is "):
        trained("sft", base, copy, stopped, *_settings("sft"), resume=True)
    data_before = data.read_text()
    try:
        data.write_text(data_before + "\n")
        with pytest.raises(TrainingError, match=r"--resume: sha256 is "):
            trained("sft", base, data, stopped, *_settings("sft"), resume=True)
    finally:
        data.write_text(data_before)


def test_changed_held_out_examples_are_noticed(base: Path, data: Path, tmp_path: Path) -> None:
    apart = write_rows(tmp_path / "apart.jsonl", pairs(2))
    plan = plan_of("sft", base, data, tmp_path / "out", *_settings("sft"), held_out=DataSource(str(apart)))
    with Progress() as progress:
        begun = prepare(plan, progress).identity
        write_rows(apart, pairs(3))
        with pytest.raises(TrainingError, match="--resume: held_out_sha256 is "):
            require_same(begun, prepare(plan, progress).identity)


def test_two_processes_do_not_train_in_one_folder(stopped: Path, base: Path, data: Path) -> None:
    with locked(stopped / ".training"), pytest.raises(TrainingError, match="another process trains in it"):
        trained("sft", base, data, stopped, *_settings("sft"), resume=True)


def test_what_has_ended_or_never_began_cannot_resume(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"--resume: .*: there is no training in it; leave --resume out"):
        trained("sft", base, data, tmp_path / "out", resume=True)
    trained("sft", base, data, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"--resume: .*: its training has ended"):
        trained("sft", base, data, tmp_path / "out", resume=True)


def test_ctrl_c_ends_after_a_step_and_says_how_to_go_on(base: Path, data: Path, tmp_path: Path) -> None:
    settings = [f"--set={setting}" for setting in (*SMALL, "sft.batch=1", "sft.accumulation=1")]
    command = [
        *(sys.executable, "-m", "eft_server", "train", "sft", f"--base={base}", f"--data={data}"),
        *(f"--out={tmp_path / 'out'}", "--threads=1", "--device=cpu", "--no-verify", "--epochs=500"),
        *("--checkpoint-every=1000", *settings),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "sft: " in line and "steps" in line)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said + rest
    assert "run the same command with --resume to go on" in rest
    assert "Traceback" not in rest
    [state] = (tmp_path / "out" / ".training" / "sft").glob("checkpoint-*")
    stopped_at = json.loads((state / "trainer_state.json").read_text())["global_step"]
    assert f"sft: stopped after {stopped_at} of " in rest
