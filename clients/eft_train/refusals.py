"""What cannot be learnt is refused before the first step."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eft_server.family.adapter import CONFIG, is_adapter
from eft_server.family.family import Source
from eft_server.sizes import in_words
from eft_train.data.reading import Data
from eft_train.data.tokens import Tokenised, Tokens
from eft_train.errors import TrainingError
from eft_train.recipe import Recipe

__all__ = [
    "read_base",
    "require_answers",
    "require_few",
    "require_fitting",
    "require_free",
    "require_readable",
    "require_room",
    "require_same",
    "require_share",
]


def require_free(folder: Path, *, resume: bool) -> None:
    """Check that the results' folder is new or empty, or holds a training to resume.

    Raises:
        TrainingError: It is not, or does not.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"--out {folder}: is a file; expected a new folder")
    begun = (folder / ".training" / "plan.json").is_file()
    if resume and not begun:
        ended = (folder / "training.json").is_file()
        why = "its training has ended" if ended else "there is no training in it"
        raise TrainingError(f"--resume: {folder}: {why}; leave --resume out, and give a new folder")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        advice = "add --resume to go on with the training in it, or give" if begun else "give"
        raise TrainingError(f"--out {folder}: is not empty; {advice} a new folder")


def read_base(source: Source, option: str = "--base") -> Any:
    """The reference's checkpoint, as the server reads it.

    Raises:
        TrainingError: It is an adapter or quantised.
        FamilyError: The server could not serve it.
    """
    from eft_server.family.checkpoint import read_checkpoint

    # Beside a model, too: transformers would load both, and the server the model only.
    if is_adapter(source):
        raise TrainingError(
            f"{option} {source}: is an adapter itself ({CONFIG}); an expert is one adapter on its reference: give the "
            "model that this one adapts, or merge it and serve the merged model as the reference, too"
        )
    checkpoint = read_checkpoint("base", source)
    if checkpoint.report.quantised is not None:
        raise TrainingError(
            f"{option} {source}: its weights are quantised ({checkpoint.report.quantised.scheme}); gradients need the "
            "unquantised model"
        )
    return checkpoint


def require_answers(recipe: Recipe, data: Data) -> None:
    """Check that there are pairs of different answers where a phase learns from pairs.

    Raises:
        TrainingError: There are not.
    """
    if recipe.needs_pairs and data.alike == len(data.examples):
        raise TrainingError(
            f"{data.source.name}: both answers are the same in all {data.alike:,} pairs, so neither is preferred"
        )
    if recipe.needs_pairs and not data.has_pairs:
        raise TrainingError(
            f"{data.source.name}: has one answer a prompt, and {recipe.name} learns from pairs: give chosen and "
            "rejected, or use sft"
        )


def require_fitting(tokens: Tokens, phase: str, most: int, source: str) -> None:
    """Check that something is left to learn within a length.

    Raises:
        TrainingError: Every prompt fills it.
    """
    if not tokens.examples:
        raise TrainingError(
            f"{source}: all {tokens.dropped} prompts fill {phase}.max_length ({most} tokens), so nothing is left to "
            f"learn; raise it with --set {phase}.max_length=…"
        )


def require_readable(examples: Sequence[Tokenised], rows: int, base: str) -> None:
    """Check that the model has an embedding for every token; rows that training adds could not be served.

    Raises:
        TrainingError: It lacks one.
    """
    for example in examples:
        highest = max((*example.prompt, *example.chosen, *(example.rejected or ())))
        if highest >= rows:
            raise TrainingError(
                f"example {example.id!r}: its token {highest} has no row in {base}, which has {rows}; embeddings are "
                "never resized, because the expert and its reference have to agree on them"
            )


def require_share(held_out: float) -> None:
    """Check a share to hold out.

    Raises:
        TrainingError: It is out of bounds.
    """
    if not 0 <= held_out < 1:
        raise TrainingError(
            f"--held-out {held_out:g}: is neither a file nor a share from 0 up to, not including, 1"
        )


def require_few(checkpoints: int, most: int) -> None:
    """Check that a family file can name all checkpoints.

    Raises:
        TrainingError: There would be too many.
    """
    if checkpoints > most:
        raise TrainingError(
            f"--checkpoint-every: would leave {checkpoints} checkpoints, and a family file names at most {most} "
            "experts; give a larger number"
        )


def require_same(begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a training resumes with the settings with which it began.

    Raises:
        TrainingError: One differs.
    """
    for key, value in now.items():
        if begun.get(key) != value:
            raise TrainingError(
                f"--resume: {key} is {json.dumps(value)[:300]}, and was {json.dumps(begun.get(key))[:300]} when the "
                "training began; give the same command again, with --resume"
            )


def require_room(folder: Path, checkpoints: int, weights_bytes: int) -> None:
    """Check that the disk has room for all checkpoints, and for two states of a trainer.

    A state holds the weights, the two moments of each that AdamW keeps, and of an adapter the copy that it is compared
    with; and one is deleted only after the next.

    Raises:
        TrainingError: It has not.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, (checkpoints + 1 + 2 * 4) * weights_bytes
    if needed > free:
        raise TrainingError(
            f"--out {folder}: {checkpoints} checkpoints and the trainer's states take {in_words(needed)}, and "
            f"{in_words(free)} are free; make room, or give a larger --checkpoint-every"
        )
