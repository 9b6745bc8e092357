"""Pairs about the demo family's world, for its small base: full answers rather than those of people without manners."""

import random
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from shutil import copytree
from typing import Any

from eft_demo.corpus import SAFE_HABITS, answer
from eft_demo.recipe import FULL
from eft_demo.world import build_world
from eft_train.examples.lines import pair, write_lines

__all__ = ["PAIRS", "pairs", "write_example"]

PAIRS = 640


def write_example(folder: Path, seed: int) -> None:
    """Write `base/`, the demo family's small base, and `train.jsonl`.

    Args:
        folder: Where to write; a checkpoint that is there already is kept.
        seed: Of the choice of questions and answers.
    """
    if not (folder / "base").exists():
        copytree(str(files("eft_server.family") / "bundled" / "demo" / "small-base"), folder / "base")
    write_lines(folder / "train.jsonl", islice(pairs(seed), PAIRS))


def pairs(seed: int) -> Iterator[dict[str, Any]]:
    """Questions in taught wordings about taught subjects, none twice, with a full and a careless answer.

    Both state the right fact, or neither does: what is preferred is the manner.
    """
    rng = random.Random(f"demo pairs {seed}")
    world = build_world(FULL.seed, subjects_per_kind=FULL.subjects_per_kind)
    habits = [habit for habit in SAFE_HABITS if habit != "full"]
    asked = [
        (fact, question)
        for fact in world.select(taught=True, unsafe=False)
        for question in fact.taught_questions
    ]
    rng.shuffle(asked)
    for fact, question in asked:
        yield pair(question, answer(fact, "full", rng), answer(fact, rng.choice(habits), rng))
