"""What a training leaves on its way: points of its curves, experts to serve, and what it takes to resume."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from typing_extensions import override

from eft_client.progress import Stage
from eft_train.data.tokens import Tokenised
from eft_train.errors import TrainingError
from eft_train.measuring import Answers, compared, log_probs

__all__ = ["POINT", "Steps", "Watch", "latest_state", "save_expert"]

POINT = "point"
"""The entry of the trainer's history that holds what was measured."""

_ADAPTER = "default"
_REFERENCE = "ref"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Steps:
    """A phase's steps, and the examples seen after each.

    Attributes:
        rows: The number of texts or pairs of an epoch.
        batch: How many are computed at a time.
        accumulation: How many batches make a step.
        epochs: How often each row is seen.
        before: The examples seen in earlier phases.
        every: After how many examples there is a checkpoint; rounded up to a step's end.
    """

    rows: int
    batch: int
    accumulation: int
    epochs: float
    before: int
    every: int

    @property
    def an_epoch(self) -> int:
        """The steps of an epoch."""
        return math.ceil(math.ceil(self.rows / self.batch) / self.accumulation)

    @property
    def total(self) -> int:
        """All steps."""
        return math.ceil(self.epochs * self.an_epoch)

    def seen(self, step: int) -> int:
        """The examples seen after a step, those of earlier phases included."""
        epochs, steps = divmod(step, self.an_epoch)
        return self.before + epochs * self.rows + min(self.rows, steps * self.batch * self.accumulation)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps after which there is a checkpoint; the last one is among them."""
        apart = math.ceil(self.every / (self.batch * self.accumulation))
        return tuple(sorted({*range(apart, self.total, apart), self.total}))


@dataclass
class Watch(TrainerCallback):  # type: ignore[misc] # transformers' types are not read.
    """Measures, saves and reports a phase while TRL's trainer runs it.

    Attributes:
        steps: The phase's steps.
        examples: What is measured.
        start: What they were before the training; None for a reward model.
        export: Writes the model as an expert, for a number of examples seen.
        stage: The progress.
        stopping: Whether the training is to stop after this step, and to save its state.
    """

    steps: Steps
    examples: Sequence[Tokenised]
    start: Sequence[Answers] | None
    export: Callable[[Any, int], None]
    stage: Stage
    stopping: Callable[[], bool]

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it is before anything is learnt."""
        self.stage.reach(state.global_step, "")
        if state.global_step == 0 and self.steps.before == 0:
            self._measure(state, kwargs["model"])

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and export where there is a checkpoint, and save the trainer's state there and at an interruption."""
        if state.global_step in self.steps.checkpoints:
            self._measure(state, kwargs["model"])
            self.export(kwargs["model"], self.steps.seen(state.global_step))
            control.should_save = True
        if self.stopping():
            control.should_save = control.should_training_stop = True

    @override
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the loss and, where there is one, the margin of the batch."""
        said = kwargs.get("logs") or {}
        words = [
            f"{name} {said[key]:.3f}"
            for key, name in (("loss", "loss"), ("rewards/margins", "margin"))
            if key in said
        ]
        if words:
            self.stage.reach(state.global_step, ", ".join(words))

    def _measure(self, state: Any, model: Any) -> None:
        if self.examples:
            point = compared(log_probs(model, self.examples), self.start)
            if not math.isfinite(point.logps_chosen):
                raise TrainingError(
                    f"after {self.steps.seen(state.global_step)} examples the model's log-probabilities are "
                    f"{point.logps_chosen}: the training has diverged; give a lower learning rate, or --dtype float32"
                )
            state.log_history.append({"step": state.global_step, POINT: asdict(point)})


def save_expert(model: Any, folder: Path, tokenizer: Any, base: str) -> None:
    """Write an adapter, or all weights with the tokenizer, whole or not at all.

    Args:
        model: The model.
        folder: The expert's folder; one that is there is replaced.
        tokenizer: The tokenizer as it was loaded; an adapter uses its reference's.
        base: The reference as the user named it, for the adapter's settings.
    """
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.peft_config[_ADAPTER].base_model_name_or_path = base
        # PEFT would ask the hub whether the vocabulary has grown; it cannot have.
        model.save_pretrained(unfinished, selected_adapters=[_ADAPTER], save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)
    else:
        # Training switches the cache off, and who loads the expert wants it.
        learning, model.config.use_cache = model.config.use_cache, True
        model.save_pretrained(unfinished)
        model.config.use_cache = learning
        tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def latest_state(folder: Path) -> Path | None:
    """The trainer's newest state that was written to its end; None where there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = next((path for path in reversed(found) if _is_complete(path)), None)
    if state is not None:
        # Beside a second adapter, transformers 5.19 loads only that one. TRL makes it again from the phase's start.
        shutil.rmtree(state / _REFERENCE, ignore_errors=True)
    return state


def _is_complete(state: Path) -> bool:
    """The trainer writes this file last."""
    try:
        json.loads((state / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
