"""From a plan to phases that can run: everything is read, checked and divided before the first step."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eft_client.progress import Progress
from eft_server.family.checkpoint import read_tokenizer
from eft_server.family.family import Source
from eft_train import refusals
from eft_train.checkpoints import Steps
from eft_train.data.forms import Example
from eft_train.data.reading import Data, DataSource, Division, divide, read_data
from eft_train.data.tokens import Tokenised, Tokens, tokenised
from eft_train.errors import TrainingError
from eft_train.hardware import Hardware, hardware_of
from eft_train.phases import PhaseRun
from eft_train.plan import Plan
from eft_train.recipe import Phase
from eft_train.results.families import MOST_CHECKPOINTS
from eft_train.servable import require_servable

__all__ = ["Prepared", "prepare", "source_of"]

MOST_MEASURED = 64
"""Examples that are measured at each checkpoint."""

FEW_EXAMPLES = 20
"""Of fewer one is told that they are few."""

_CHECKPOINTS = 8
"""Checkpoints of a run that does not say how many it wants."""


@dataclass(frozen=True)
class Prepared:
    """A training that can begin.

    Attributes:
        plan: The plan.
        base: The reference, with its directory as an absolute path and its revision on the hub.
        data: What was read.
        division: What is learnt, and what is held out.
        measured: The examples that are measured at each checkpoint.
        on_held_out: Whether they are held out.
        hardware: Where it computes.
        phases: The phases.
        warnings: What the server would warn of.
    """

    plan: Plan
    base: Source
    data: Data
    division: Division
    measured: tuple[Tokenised, ...]
    on_held_out: bool
    hardware: Hardware
    phases: tuple[PhaseRun, ...]
    warnings: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that resumes has to have in common with the one that began."""
        plan = self.plan
        held_out = plan.held_out.name if isinstance(plan.held_out, DataSource) else plan.held_out
        return {
            "recipe": plan.recipe.model_dump(mode="json"),
            "full": plan.full,
            "base": plan.base,
            "revision": self.base.revision,
            "data": plan.data.name,
            "sha256": self.data.sha256,
            "held_out": held_out,
            "max_examples": plan.max_examples,
            "checkpoint_every": plan.checkpoint_every,
            "seed": plan.seed,
            "dtype": self.hardware.dtype,
            # Last, since it also follows from settings, which say more.
            "held_out_sha256": _sha256(self.division.held_out),
        }

    @property
    def notes(self) -> list[str]:
        """What happened to examples, for people."""
        said = [f"the server warns: {warning}" for warning in self.warnings]
        if self.data.left_out:
            first = self.data.left_out[0]
            said.append(
                f"{len(self.data.left_out):,} rows could not be read and are left out, such as {first}"
            )
        if self.data.alike and self.plan.recipe.needs_pairs:
            said.append(
                f"both answers are the same in {self.data.alike:,} of {len(self.data.examples):,} pairs: a loss on "
                "pairs learns nothing from these"
            )
        if (few := len(self.division.trained_on)) < FEW_EXAMPLES:
            said.append(
                f"{few} example{'s' if few > 1 else ''} to learn from: that is few, and learnt by heart"
            )
        if self.division.shared:
            said.append(
                f"{self.division.shared:,} examples are not learnt, because their prompts are held out"
            )
        for run in self.phases:
            tokens, most = run.examples, run.phase.max_length
            if tokens.cut:
                said.append(
                    f"{run.name}: {tokens.cut:,} of {len(tokens.examples):,} examples are cut off at {most} tokens"
                )
            if tokens.dropped:
                said.append(
                    f"{run.name}: {tokens.dropped:,} examples are left out, since their prompts fill {most} tokens"
                )
        return said


def prepare(plan: Plan, progress: Progress) -> Prepared:
    """Read and check everything; nothing is written.

    Raises:
        TrainingError: The training could not begin, or what it made could not be served.
        FamilyError: The server could not serve the reference.
    """
    refusals.require_free(plan.out, resume=plan.resume)
    base = source_of(plan.base, plan.revision)
    progress.say("reading the base's config and tokenizer")
    checkpoint = refusals.read_base(base)
    plan = _shortened(plan, checkpoint.report.max_position_embeddings, progress)
    base = _pinned(base)
    progress.say("reading the data")
    data, division = _divided(plan, as_text=checkpoint.chat_template is None)
    refusals.require_answers(plan.recipe, data)
    progress.say(f"tokenising {len(division.trained_on) + len(division.held_out):,} examples")
    tokenizer = read_tokenizer(base.model, base.revision)
    texts, apart = (
        tokenised(part, checkpoint, tokenizer) for part in (division.trained_on, division.held_out)
    )
    refusals.require_readable([*texts, *apart], checkpoint.report.vocab_size, plan.base)
    progress.say("checking that the server could serve the expert")
    larger = None if plan.large is None else source_of(plan.large)
    servable = require_servable(plan, base, larger)
    longest = plan.recipe.last.max_length
    on_held_out = bool(_measured(apart, longest))
    hardware = hardware_of(plan.device, plan.dtype, checkpoint.report.parameters)
    phases = _phases(plan, base, texts, hardware)
    kept = sum(len(run.steps.checkpoints) for run in phases)
    refusals.require_room(plan.out, kept, servable.adapter_bytes or 4 * checkpoint.report.parameters)
    measured = _measured(apart if on_held_out else texts, longest)
    division = _fitting(
        division, [*texts, *apart], max(phase.max_length for phase in plan.recipe.phases.values())
    )
    return Prepared(plan, base, data, division, measured, on_held_out, hardware, phases, servable.warnings)


def _shortened(plan: Plan, longest: int, progress: Progress) -> Plan:
    """The plan for a model that reads at most so many tokens."""
    recipe = plan.recipe.within(longest)
    if recipe != plan.recipe:
        progress.say(f"max_length is {longest}, the most tokens that {plan.base} reads")
    return replace(plan, recipe=recipe)


def _fitting(division: Division, texts: Sequence[Tokenised], longest: int) -> Division:
    """The examples whose prompt leaves room for an answer; no other is learnt, or could be scored."""
    ids = {example.id for example in Tokens.within(texts, longest).examples}
    trained_on, held_out = (
        tuple(example for example in part if example.id in ids)
        for part in (division.trained_on, division.held_out)
    )
    return replace(division, trained_on=trained_on, held_out=held_out)


def source_of(model: str, revision: str | None = None) -> Source:
    """A directory, as an absolute path, or a hub id.

    Raises:
        TrainingError: A directory is given a revision.
    """
    path = Path(model).expanduser()
    if not path.is_dir() and not model.startswith((".", "/", "~")):
        return Source(model, revision)
    if revision is not None:
        raise TrainingError(f"--revision {revision}: {model} is a directory and has no revisions")
    return Source(str(path.absolute()))


def _pinned(source: Source) -> Source:
    """A hub's model at the commit that is read now, so that the family serves what was trained on."""
    from transformers import AutoConfig

    if os.path.isabs(source.model):
        return source
    config = AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=False)
    return Source(source.model, getattr(config, "_commit_hash", None) or source.revision)


def _divided(plan: Plan, *, as_text: bool) -> tuple[Data, Division]:
    data = read_data(plan.data, hh_as_text=as_text)
    if isinstance(plan.held_out, DataSource):
        return data, divide(data, read_data(plan.held_out, hh_as_text=as_text), plan.seed, plan.max_examples)
    refusals.require_share(plan.held_out)
    return data, divide(data, plan.held_out, plan.seed, plan.max_examples)


def _measured(examples: Sequence[Tokenised], most: int) -> tuple[Tokenised, ...]:
    """Examples over the whole data, those that are not cut off first."""
    fitting = sorted(Tokens.within(examples, most).examples, key=lambda example: example.is_cut)
    whole = [example for example in fitting if not example.is_cut] or fitting
    apart = max(1, len(whole) // MOST_MEASURED)
    return tuple(whole[::apart][:MOST_MEASURED])


def _phases(
    plan: Plan, base: Source, examples: Sequence[Tokenised], hardware: Hardware
) -> tuple[PhaseRun, ...]:
    recipe = plan.recipe
    tokens = {name: _within(plan, name, phase, examples) for name, phase in recipe.phases.items()}
    seen = {name: _rows(phase, tokens[name]) * phase.epochs for name, phase in recipe.phases.items()}
    every = plan.checkpoint_every or math.ceil(sum(seen.values()) / _CHECKPOINTS)
    steps = _steps(recipe.phases, tokens, every)
    refusals.require_few(sum(len(those.checkpoints) for those in steps.values()), MOST_CHECKPOINTS)
    runs: list[PhaseRun] = []
    for name, phase in recipe.phases.items():
        runs.append(
            PhaseRun(
                name=name,
                phase=phase,
                lora=None if plan.full else recipe.lora,
                base=base,
                base_name=plan.base,
                previous=runs[-1].expert if runs else None,
                folder=plan.out,
                is_last=phase is recipe.last,
                seed=plan.seed,
                hardware=hardware,
                steps=steps[name],
                examples=tokens[name],
            )
        )
    return tuple(runs)


def _within(plan: Plan, name: str, phase: Phase, examples: Sequence[Tokenised]) -> Tokens:
    tokens = Tokens.within(examples, phase.max_length)
    refusals.require_fitting(tokens, name, phase.max_length, plan.data.name)
    return tokens


def _rows(phase: Phase, tokens: Tokens) -> int:
    """Texts for `sft`, pairs otherwise."""
    return len(tokens.examples) * (2 if phase.answers == "both" and not phase.takes_pairs else 1)


def _steps(phases: Mapping[str, Phase], tokens: Mapping[str, Tokens], every: int) -> dict[str, Steps]:
    steps: dict[str, Steps] = {}
    before = 0
    for name, phase in phases.items():
        rows = _rows(phase, tokens[name])
        steps[name] = Steps(rows, phase.batch, phase.accumulation, phase.epochs, before, every)
        before = steps[name].seen(steps[name].total)
    return steps


def _sha256(examples: Sequence[Example]) -> str:
    return hashlib.sha256(json.dumps([example.as_json() for example in examples]).encode()).hexdigest()


def read_identity(folder: Path) -> dict[str, Any]:
    """What a training that began says of itself."""
    identity: dict[str, Any] = json.loads((folder / ".training" / "plan.json").read_text(encoding="utf-8"))
    return identity
