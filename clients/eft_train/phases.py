"""One phase: a model from where the last phase left it, TRL's trainer, and an expert at the end."""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eft_client.jsonl import write_whole
from eft_client.progress import Progress
from eft_server.family.checkpoint import read_tokenizer
from eft_server.family.family import Source
from eft_train.checkpoints import Steps, Watch, latest_state, save_expert
from eft_train.data.tokens import Tokenised, Tokens
from eft_train.errors import Interrupted
from eft_train.hardware import Hardware
from eft_train.measuring import Answers, log_probs
from eft_train.recipe import ARM, Lora, Phase

__all__ = ["Outcome", "PhaseRun", "interruptible", "lora_config"]


@dataclass(frozen=True)
class Outcome:
    """What a phase that is over says of itself.

    Attributes:
        history: The trainer's history.
        start: What is measured, before it.
        end: What is measured, after it.
    """

    history: list[dict[str, Any]]
    start: list[Answers]
    end: list[Answers]

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["history"], _answers(data["start"]), _answers(data["end"]))

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))


def _answers(stored: Any) -> list[Answers]:
    return [Answers(tuple(a["chosen"]), a["rejected"] and tuple(a["rejected"])) for a in stored]


@dataclass(frozen=True)
class PhaseRun:
    """One phase of a run.

    Attributes:
        name: Its name.
        phase: What it does.
        lora: The low-rank terms; None where all weights are learnt.
        base: The reference model, with its directory as an absolute path.
        base_name: The reference model as the user named it.
        previous: The expert of the phase before, None for the first.
        folder: The run's folder.
        is_last: Whether its expert is the run's.
        seed: The seed.
        hardware: Where it computes.
        steps: Its steps.
        examples: What is learnt.
    """

    name: str
    phase: Phase
    lora: Lora | None
    base: Source
    base_name: str
    previous: Path | None
    folder: Path
    is_last: bool
    seed: int
    hardware: Hardware
    steps: Steps
    examples: Tokens

    @property
    def state(self) -> Path:
        """The folder of the trainer's states."""
        return self.folder / ".training" / self.name

    @property
    def outcome_file(self) -> Path:
        """The file that says that the phase is over."""
        return self.folder / ".training" / f"{self.name}.json"

    @property
    def expert(self) -> Path:
        """The folder of the expert that it leaves."""
        return self.folder / "expert" if self.is_last else self.folder / "phases" / self.name / "expert"

    def run(
        self,
        measured: Sequence[Tokenised],
        reference: Sequence[Answers] | None,
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> Outcome:
        """Train, from the last state if there is one.

        Args:
            measured: What is measured.
            reference: What it was under the reference, once a phase has measured that.
            progress: Where progress goes.
            stopping: Whether to stop after this step.

        Raises:
            Interrupted: It was told to stop before its end, and has saved its state.
        """
        if self.outcome_file.is_file():
            return Outcome.read(self.outcome_file)
        tokenizer = read_tokenizer(self.base.model, self.base.revision)

        def export(model: Any, seen: int) -> None:
            save_expert(model, self.folder / "checkpoints" / f"{seen:06}", tokenizer, self.base_name)

        resumed = latest_state(self.state)
        done = int(resumed.name.rpartition("-")[2]) if resumed else 0
        stage = progress.begin(self.name, self.steps.total, done=done, unit="steps")
        watch = Watch(self.steps, measured, None, export, stage, stopping)
        trainer = self._trainer(watch)
        start = log_probs(trainer.model, measured)
        watch.start = None if self.phase.loss == ARM else reference or start
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        done = trainer.state.global_step
        if done < self.steps.total:
            raise Interrupted(f"{self.name}: stopped after {done} of {self.steps.total} steps")
        save_expert(trainer.model, self.expert, tokenizer, self.base_name)
        outcome = Outcome(trainer.state.log_history, start, log_probs(trainer.model, measured))
        outcome.write(self.outcome_file)
        return outcome

    def measured_in_float32(
        self, outcome: Outcome, examples: Sequence[Tokenised]
    ) -> tuple[Sequence[Answers], Sequence[Answers]]:
        """What the phase's first examples are in float32 at its start and its end, however it was computed."""
        if self.hardware.dtype == "float32":
            return outcome.start[: len(examples)], outcome.end[: len(examples)]
        start, end = (log_probs(self._served(expert), examples) for expert in (self.previous, self.expert))
        return start, end

    def _served(self, expert: Path | None) -> Any:
        """An expert in float32, or the reference where there is none."""
        full = self.lora is None and expert is not None
        model = self._model(Source(str(expert)) if full else self.base, "float32")
        if expert is not None and not full:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, expert)
        return model if self.hardware.on_cpu else model.to("cuda")

    def _trainer(self, watch: Watch) -> Any:
        from eft_train.trainers import trainer_of

        return trainer_of(self.phase, self.examples.examples, self._options(), self._models(), watch)

    def _options(self) -> dict[str, Any]:
        return {
            "output_dir": str(self.state),
            "seed": self.seed,
            "data_seed": self.seed,
            "max_steps": self.steps.total,
            "per_device_train_batch_size": self.phase.batch,
            "gradient_accumulation_steps": self.phase.accumulation,
            "learning_rate": self.phase.learning_rate if self.lora else self.phase.full_learning_rate,
            "lr_scheduler_type": self.phase.schedule,
            "warmup_steps": self.phase.warmup,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_total_limit": 2,
            "report_to": [],
            "disable_tqdm": True,
            **self.hardware.options,
        }

    def _models(self) -> dict[str, Any]:
        """The trainer's models, the way TRL wants them.

        A new adapter is TRL's to make, and its reference the model without it. One from an earlier phase comes as it
        is: TRL keeps a frozen copy as the reference.
        """
        found = {"processing_class": read_tokenizer(self.base.model, self.base.revision)}
        if self.lora is None:
            # Weights that are learnt in bfloat16 would not notice small steps.
            found["model"] = self._model(self._start, "float32")
            if self.phase.compares:
                found["ref_model"] = self._model(self._start, "float32")
            return found
        model = self._model(self.base, self.hardware.dtype)
        if self.previous is None:
            return found | {"model": model, "peft_config": lora_config(self.lora)}
        from peft import PeftModel

        return found | {"model": PeftModel.from_pretrained(model, self.previous, is_trainable=True)}

    @property
    def _start(self) -> Source:
        return Source(str(self.previous)) if self.previous else self.base

    def _model(self, source: Source, dtype: str) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            source.model,
            revision=source.revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
        )


def lora_config(lora: Lora) -> Any:
    """PEFT's settings for a recipe's low-rank terms."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # PEFT would take another text for a pattern of the whole name.
        target_modules=lora.targets if lora.targets == "all-linear" else _ends(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _ends(targets: str | list[str]) -> list[str]:
    return [targets] if isinstance(targets, str) else targets


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first signal to stop wait for the end of a step; a second one raises `KeyboardInterrupt`."""
    asked = threading.Event()

    def stop(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
