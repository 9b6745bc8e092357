"""What is to be trained, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path

from eft_train.data.reading import DataSource
from eft_train.recipe import Recipe

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What is to be trained, as the command line says it.

    Attributes:
        recipe: The phases and their numbers.
        base: The reference: a directory or a hub id.
        data: Where the examples come from.
        out: The folder of the results.
        revision: The reference's revision on the hub.
        large: Another model as the family's base; None for the reference itself.
        full: Whether all weights are learnt, instead of low-rank terms.
        held_out: The share of the examples to hold out, or a file of such examples.
        seed: Decides what is held out, the order of the examples, and the low-rank terms' start.
        max_examples: The greatest number of examples to learn from.
        checkpoint_every: After how many examples there is a checkpoint.
        resume: Whether to go on with the training in `out`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32` or `bfloat16`.
        threads: CPU threads; None leaves it to torch.
        verify: Whether the expert is compared with what the server makes of it.
    """

    recipe: Recipe
    base: str
    data: DataSource
    out: Path
    revision: str | None = None
    large: str | None = None
    full: bool = False
    held_out: float | DataSource = 0.1
    seed: int = 0
    max_examples: int | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    verify: bool = True

    @property
    def kind(self) -> str:
        """How a family file names the expert."""
        return "model" if self.full else "adapter"
