"""What a run does, in numbers: recipes are YAML files, and any key can be set on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from eft_server.errors import ConfigError
from eft_server.family.document import Document, describe, read_document

__all__ = ["LOSSES", "MAX_RANK", "Lora", "Phase", "Recipe", "bundled_recipes", "load_recipe"]

MAX_RANK = 512
"""The highest rank of an adapter that the server serves (docs/members.md)."""

SFT, ARM = "sft", "arm"
LOSSES = (SFT, "sigmoid", "ipo", "hinge", "robust", "apo_zero", "sigmoid_norm", ARM)
"""Supervised fine-tuning, the losses on pairs that TRL has under these names, and that of a reward model."""

Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=65_536)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lora(_Section):
    """The low-rank terms that are learnt.

    Attributes:
        rank: Their rank.
        alpha: Their scaling is alpha / rank.
        dropout: The share of a term's inputs that is left out in a step.
        targets: The linear layers that get one: `all-linear`, or the ends of their names.
    """

    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 16
    alpha: Annotated[float, Field(gt=0, le=65_536, allow_inf_nan=False)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    targets: str | list[str] = "all-linear"


class Phase(_Section):
    """One training from a start to an end, with a loss and a schedule.

    Attributes:
        loss: What is learnt: one of `LOSSES`.
        answers: For `sft` on pairs, which answers are learnt: the chosen ones, or both.
        beta: For losses on pairs, how far the model may go from its reference.
        learning_rate: The peak rate for LoRA.
        full_learning_rate: The peak rate where all weights are learnt.
        epochs: How often each example is seen.
        batch: Examples (texts for `sft`, pairs otherwise) that are computed at a time.
        accumulation: Such batches in one step.
        schedule: How the rate falls from its peak.
        warmup: The share of the steps in which it rises.
        max_length: The number of tokens after which a text is cut off.
    """

    loss: str
    answers: Literal["chosen", "both"] = "chosen"
    beta: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 0.1
    learning_rate: Rate
    full_learning_rate: Rate
    epochs: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1
    batch: Count = 4
    accumulation: Count = 4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    max_length: Annotated[int, Field(ge=2, le=1 << 20)] = 1024

    @field_validator("loss")
    @classmethod
    def _is_known(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise ValueError(f"{loss!r:.100} is no loss; expected one of {', '.join(LOSSES)}")
        return loss

    @property
    def needs_pairs(self) -> bool:
        """Whether it learns from pairs of answers."""
        return self.loss != SFT or self.answers == "both"

    @property
    def takes_pairs(self) -> bool:
        """Whether its examples are pairs; otherwise they are texts."""
        return self.loss != SFT

    @property
    def compares(self) -> bool:
        """Whether its loss is one on pairs, with a reference."""
        return self.loss not in (SFT, ARM)

    @property
    def examples_a_step(self) -> int:
        """The number of texts or pairs that a step learns from."""
        return self.batch * self.accumulation


class Recipe(_Section):
    """Phases that follow each other in one model.

    Attributes:
        name: Its name.
        description: What it does, for people.
        lora: The low-rank terms; unused where all weights are learnt.
        phases: The phases by name, in their order.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    description: Annotated[str, Field(max_length=2000)] = ""
    lora: Lora = Lora()
    phases: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")], Phase],
        Field(min_length=1, max_length=8),
    ]

    @property
    def needs_pairs(self) -> bool:
        """Whether a phase learns from pairs of answers."""
        return any(phase.needs_pairs for phase in self.phases.values())

    @property
    def is_reward_model(self) -> bool:
        """Whether what comes out is a reward by itself, with no reference to compare it with."""
        return self.last.loss == ARM

    def within(self, longest: int) -> "Recipe":
        """The recipe for a model that reads at most so many tokens."""
        phases = {
            name: phase.model_copy(update={"max_length": min(phase.max_length, longest)})
            for name, phase in self.phases.items()
        }
        return self.model_copy(update={"phases": phases})

    @property
    def last(self) -> Phase:
        """The phase that ends it."""
        return tuple(self.phases.values())[-1]


def bundled_recipes() -> dict[str, Path]:
    """The recipes that come with the command, by name."""
    folder = Path(__file__).parent / "recipes"
    return {name: folder / f"{name}.yaml" for name in ("sft", "dpo", "extend", "arm")}


def load_recipe(name: str, overrides: Sequence[str] = (), *, epochs: float | None = None) -> Recipe:
    """Read a recipe by its bundled name or its file, with overrides such as ``dpo.beta=0.3`` on top.

    Args:
        name: The name or the file.
        overrides: New values for keys of the file, applied in order; a phase's name stands for `phases.NAME`.
        epochs: The epochs of every phase.

    Raises:
        ConfigError: There is no such recipe, or it is wrong; the message gives file, line and dotted key.
    """
    document = read_document(_locate(name))
    for assignment in overrides:
        document.override(_spelt_out(document, assignment))
    if epochs is not None:
        for phase in _phases(document):
            document.override(f"phases.{phase}.epochs={epochs}")
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(describe(error, document, Recipe)) from error


def _locate(name: str) -> Path:
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"{name[:200]!r} is neither a recipe's file nor a recipe ({', '.join(bundled)})")
    return path


def _phases(document: Document) -> dict[str, Any]:
    phases = document.data.get("phases")
    return phases if isinstance(phases, dict) else {}


def _spelt_out(document: Document, assignment: str) -> str:
    """Put `phases.` before a key that begins with a phase's name."""
    head = assignment.partition(".")[0].strip()
    return f"phases.{assignment.strip()}" if head in _phases(document) else assignment
