"""What `training.json` holds: the recipe as it was, what it was fed, and what came of it."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from eft_train.phases import Outcome
from eft_train.results import curves
from eft_train.results.squeezing import squeezing

if TYPE_CHECKING:
    from eft_train.preparation import Prepared

__all__ = ["record_of"]

_PACKAGES = ("eft-server", "trl", "peft", "transformers", "accelerate", "datasets", "torch")


def record_of(prepared: "Prepared", outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The record of a training that is over, and has not been compared with the server."""
    plan, on_held_out = prepared.plan, prepared.on_held_out
    phases = [
        (run.name, run.steps, outcome.history) for run, outcome in zip(prepared.phases, outcomes, strict=True)
    ]
    points = curves.points(phases)
    comparing = [name for name, phase in plan.recipe.phases.items() if phase.compares]
    squeezed = squeezing(points, comparing, held_out=on_held_out)
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "full": plan.full,
        "is_reward_model": plan.recipe.is_reward_model,
        "base": {"model": plan.base, "revision": prepared.base.revision},
        "large": plan.large,
        "seed": plan.seed,
        "data": _data(prepared),
        "held_out": [example.id for example in prepared.division.held_out],
        "measured_on": "held-out.jsonl" if on_held_out else "trained-on.jsonl",
        "measured": [example.id for example in prepared.measured],
        "notes": prepared.notes,
        "computed": {
            "device": "cpu" if prepared.hardware.on_cpu else "cuda",
            "dtype": prepared.hardware.dtype,
        },
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "curves": points,
        "losses": curves.losses(phases),
        "squeezing": squeezed.as_json() if squeezed else None,
        "verification": None,
    }


def _data(prepared: "Prepared") -> dict[str, Any]:
    data = prepared.data
    return {
        "source": asdict(data.source),
        "sha256": data.sha256,
        "sha256_of": "file" if data.source.is_file else "rows",
        "examples": len(data.examples),
        "trained_on": len(prepared.division.trained_on),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
