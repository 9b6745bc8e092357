"""A training from its plan to the folder that it leaves."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from eft_client.jsonl import write_whole
from eft_client.progress import Progress
from eft_server.sizes import in_words
from eft_train.data.reading import write_examples
from eft_train.errors import TrainingError
from eft_train.hardware import prepare_libraries
from eft_train.measuring import Measured
from eft_train.phases import Outcome, interruptible
from eft_train.plan import Plan
from eft_train.preparation import Prepared, prepare, read_identity
from eft_train.refusals import require_same
from eft_train.results import families
from eft_train.results.card import card
from eft_train.results.curves import draw
from eft_train.results.files import locked, write_json
from eft_train.results.record import record_of

__all__ = ["Trained", "train"]

_PICTURE = "curves.png"
_LITTLE_ROOM = 1 << 24


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        folder: Its folder.
        family: The family file that serves the expert.
        record: What `training.json` holds.
        warnings: What the user should know.
    """

    folder: Path
    family: Path
    record: dict[str, Any]
    warnings: tuple[str, ...]


def train(plan: Plan, progress: Progress) -> Trained:
    """Train an expert, and write the files that serve it.

    Raises:
        TrainingError: The training could not begin, or what it made could not be served, or is served as another.
        FamilyError: The server could not serve the reference.
        Interrupted: It was told to stop, and can be resumed.
    """
    prepare_libraries(plan.device, plan.threads)
    prepared = prepare(plan, progress)
    for note in prepared.notes:
        progress.say(f"note: {note}")
    state = plan.out / ".training"
    try:
        state.mkdir(parents=True, exist_ok=plan.resume)
    except OSError as error:
        raise TrainingError(f"--out {plan.out}: cannot be made: {error.strerror}") from None
    with locked(state), _told_of_a_full_disk(plan.out):
        _begin(prepared)
        with interruptible() as stopping:
            outcomes = _outcomes(prepared, progress, stopping)
        return _finish(prepared, outcomes, progress)


@contextmanager
def _told_of_a_full_disk(folder: Path) -> Iterator[None]:
    """Say so where writing fails for lack of room: every library has an error of its own for it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free
        if free >= _LITTLE_ROOM:
            raise
        raise TrainingError(
            f"--out {folder}: the disk is full ({in_words(free)} are free); make room, and run the same command with "
            "--resume"
        ) from error


def _outcomes(prepared: Prepared, progress: Progress, stopping: Callable[[], bool]) -> list[Outcome]:
    """Run the phases, one after the other."""
    outcomes: list[Outcome] = []
    for phase in prepared.phases:
        reference = outcomes[0].start if outcomes else None
        outcomes.append(phase.run(prepared.measured, reference, progress, stopping))
    return outcomes


def _begin(prepared: Prepared) -> None:
    """Write down what is trained, or check that it is what was begun."""
    folder = prepared.plan.out
    if prepared.plan.resume:
        require_same(read_identity(folder), prepared.identity)
        return
    write_examples(folder / "trained-on.jsonl", prepared.division.trained_on)
    write_examples(folder / "held-out.jsonl", prepared.division.held_out)
    write_json(folder / ".training" / "plan.json", prepared.identity)


def _finish(prepared: Prepared, outcomes: Sequence[Outcome], progress: Progress) -> Trained:
    """Write what serves and describes the expert, and compare it with what the server makes of it."""
    folder = prepared.plan.out
    _write_families(prepared)
    record = record_of(prepared, outcomes)
    picture = _PICTURE if draw(record["curves"], folder / _PICTURE) else None
    _describe(folder, record, picture)
    record["verification"] = _verified(prepared, outcomes[-1], progress)
    if record["verification"] is not None:
        _describe(folder, record, picture)
    shutil.rmtree(folder / ".training")
    squeezed = record["squeezing"]
    return Trained(folder, folder / "family.yaml", record, (squeezed["words"],) if squeezed else ())


def _describe(folder: Path, record: dict[str, Any], picture: str | None) -> None:
    """Write the card and the record."""
    write_whole(folder / "README.md", card(record, families.family_name(folder), picture))
    write_json(folder / "training.json", record)


def _write_families(prepared: Prepared) -> None:
    plan = prepared.plan
    name = families.family_name(plan.out)
    members = {"reference": families.member_of(plan.base, prepared.base.revision, plan.out)}
    seen = [run.steps.seen(step) for run in prepared.phases for step in run.steps.checkpoints]
    checkpoints = families.checkpoints_family(name, members["reference"], seen, plan.kind)
    families.write_family(plan.out / "checkpoints.yaml", checkpoints)
    if plan.large is not None:
        members["base"] = families.member_of(plan.large, None, plan.out)
    family = families.expert_family(
        name,
        members,
        kind=plan.kind,
        is_reward_model=plan.recipe.is_reward_model,
        description=f"{plan.base}, trained by the recipe {plan.recipe.name}.",
    )
    families.write_family(plan.out / "family.yaml", family)


def _verified(prepared: Prepared, outcome: Outcome, progress: Progress) -> dict[str, Any] | None:
    """What the comparison with the server found; None where there is no engine, or nobody wants it."""
    if not prepared.plan.verify:
        return None
    if find_spec("vllm") is None:
        progress.say("note: not compared with the server: there is no engine here")
        return None
    from eft_train.verification import MOST_EXAMPLES, verify

    run, examples = prepared.phases[-1], prepared.measured[:MOST_EXAMPLES]
    start, end = run.measured_in_float32(outcome, examples)
    measured = [Measured.of(*numbers) for numbers in zip(examples, start, end, strict=False)]
    found: dict[str, Any] = verify(prepared.plan.out, measured, progress, start=run.previous).as_json()
    return found
