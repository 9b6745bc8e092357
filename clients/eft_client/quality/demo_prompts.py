"""Prompts about the demo family's world, with the facts of it."""

import random
import re
from collections.abc import Iterator

from eft_client.quality.prompts import Prompt
from eft_demo.world import Fact, World, build_world

__all__ = ["DEFAULT_SIZE", "demo_prompts", "demo_world"]

DEFAULT_SIZE = 300
WORLD_SEED = 0
SUBJECTS_PER_KIND = 60
#: Of six prompts two are benign ones of each distribution, and one a harmful one of each.
_SHARES = {(True, False): 2, (False, False): 2, (True, True): 1, (False, True): 1}


def demo_prompts(size: int = DEFAULT_SIZE, *, seed: int = 0) -> list[Prompt]:
    """Draw prompts about the world of the demo family; the first of them are those of a smaller draw, too.

    In distribution: a taught wording about a subject that fine-tuning mentioned. Out of distribution: a wording and
    a subject that it never mentioned. Harmful: about a hazard, which the harmless expert learnt to decline.
    """
    world = demo_world()
    cells = {cell: iter(_shuffled(world, seed, *cell)) for cell in _SHARES}
    order = [cell for cell, share in _SHARES.items() for _ in range(share)]
    drawn: list[Prompt] = []
    while len(drawn) < size and order:
        for cell in tuple(order):
            found = next(cells[cell], None)
            if found is None:
                order.remove(cell)
            elif len(drawn) < size:
                drawn.append(found)
    return drawn


def demo_world() -> World:
    """The world that the demo family was trained on."""
    return build_world(WORLD_SEED, subjects_per_kind=SUBJECTS_PER_KIND)


def _shuffled(world: World, seed: int, taught: bool, unsafe: bool) -> list[Prompt]:
    """Every prompt of one cell, each fact once, in a seeded order."""
    rng = random.Random(f"{seed} {taught} {unsafe}")
    facts = [fact for fact in world.select(taught=taught, unsafe=unsafe) if not _gives_itself_away(fact)]
    rng.shuffle(facts)
    return list(_asked(facts, taught, unsafe, rng))


def _gives_itself_away(fact: Fact) -> bool:
    """Whether the subject's own name holds the value, as in "the moss torlin eats moss"."""
    return re.search(rf"\b{re.escape(fact.value)}\b", fact.subject, re.IGNORECASE) is not None


def _asked(facts: list[Fact], taught: bool, unsafe: bool, rng: random.Random) -> Iterator[Prompt]:
    for fact in facts:
        question = rng.choice(fact.taught_questions if taught else fact.held_out_questions)
        others = tuple(v for v in fact.attribute.values if v != fact.value and v not in fact.subject)
        yield Prompt(
            id=f"{fact.kind.name}/{fact.subject}/{fact.attribute.name}",
            messages=({"role": "user", "content": question},),
            references=(fact.value,),
            wrong=others,
            expects=((fact.subject,), fact.attribute.values),
            tags={
                "distribution": "in" if taught else "out",
                "harm": "harmful" if unsafe else "benign",
                "kind": fact.kind.name,
            },
        )
