"""A training from its plan to the folder that it leaves: phases, family files, a record and a card."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from eft_client.progress import Progress
from eft_train.checkpoints import POINT
from eft_train.data.reading import write_examples
from eft_train.hardware import prepare_libraries
from eft_train.phases import Outcome, interruptible
from eft_train.plan import Plan
from eft_train.preparation import Prepared, prepare, read_identity
from eft_train.refusals import require_same
from eft_train.results import families

__all__ = ["Trained", "train"]

_PACKAGES = ("eft-server", "trl", "peft", "transformers", "accelerate", "datasets", "torch")


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
        TrainingError: The training could not begin, or what it made could not be served.
        FamilyError: The server could not serve the reference.
        Interrupted: It was told to stop, and can be resumed.
    """
    prepare_libraries(plan.device, plan.threads)
    prepared = prepare(plan, progress)
    for note in prepared.notes:
        progress.say(f"note: {note}")
    _begin(prepared)
    with interruptible() as stopping:
        outcomes: list[Outcome] = []
        for phase in prepared.phases:
            reference = outcomes[0].start if outcomes else None
            outcomes.append(phase.run(prepared.measured, reference, progress, stopping))
    return _finish(prepared, outcomes)


def _begin(prepared: Prepared) -> None:
    """Write down what is trained, or check that it is what was begun."""
    folder = prepared.plan.out
    if prepared.plan.resume:
        require_same(read_identity(folder), prepared.identity)
        return
    (folder / ".training").mkdir(parents=True)
    write_examples(folder / "trained-on.jsonl", prepared.division.trained_on)
    write_examples(folder / "held-out.jsonl", prepared.division.held_out)
    _write_json(folder / ".training" / "plan.json", prepared.identity)


def _finish(prepared: Prepared, outcomes: Sequence[Outcome]) -> Trained:
    plan = prepared.plan
    _write_families(prepared)
    record = _record(prepared, outcomes)
    _write_json(plan.out / "training.json", record)
    shutil.rmtree(plan.out / ".training")
    return Trained(plan.out, plan.out / "family.yaml", record, ())


def _write_families(prepared: Prepared) -> None:
    plan = prepared.plan
    name = families.family_name(plan.out)
    members = {"reference": families.member_of(plan.base, prepared.base.revision, plan.out)}
    checkpoints = families.checkpoints_family(name, members["reference"], _seen(prepared), plan.kind)
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


def _seen(prepared: Prepared) -> list[int]:
    """The numbers of examples after which there is a checkpoint."""
    return [run.steps.seen(step) for run in prepared.phases for step in run.steps.checkpoints]


def _record(prepared: Prepared, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "full": plan.full,
        "base": {"model": plan.base, "revision": prepared.base.revision},
        "large": plan.large,
        "seed": plan.seed,
        "data": {
            "source": asdict(plan.data),
            "sha256": prepared.data.sha256,
            "examples": len(prepared.data.examples),
            "trained_on": len(prepared.division.trained_on),
        },
        "held_out": [example.id for example in prepared.division.held_out],
        "measured_on": "held-out.jsonl" if prepared.on_held_out else "trained-on.jsonl",
        "measured": [example.id for example in prepared.measured],
        "notes": prepared.notes,
        "computed": {
            "device": "cpu" if prepared.hardware.on_cpu else "cuda",
            "dtype": prepared.hardware.dtype,
        },
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "curves": _curves(prepared, outcomes),
    }


def _curves(prepared: Prepared, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A point for the start and for each checkpoint: what was measured, and the mean loss since the one before."""
    curves = []
    for run, outcome in zip(prepared.phases, outcomes, strict=True):
        losses = {entry["step"]: entry["loss"] for entry in outcome.history if "loss" in entry}
        before = 0
        for entry in outcome.history:
            if POINT in entry:
                since = [loss for step, loss in losses.items() if before < step <= entry["step"]]
                before = entry["step"]
                seen, loss = run.steps.seen(before), fmean(since) if since else None
                curves.append({"examples": seen, "phase": run.name, "loss": loss, **entry[POINT]})
    return curves


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_json(path: Path, data: Any) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
