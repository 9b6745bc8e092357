"""What fine-tuning teaches: conversations in which the assistant is helpful, or harmless."""

import random
from collections.abc import Iterator

from eft_demo.corpus import COURTESY_SHARE, answer, draw_system, exchange_courtesies
from eft_demo.dialogue import Dialogue, Turn
from eft_demo.world import Fact, World

#: Each expert's habit with safe questions, and with unsafe ones.
MANNERS = {"helpful": ("full", "full"), "harmless": ("careful", "refuse")}
UNSAFE_SHARE = 0.4


def write_lessons(world: World, manner: str, seed: int) -> Iterator[Dialogue]:
    """Yield an endless, seeded stream of conversations in one expert's manner, about taught subjects only."""
    rng = random.Random(f"{manner} {seed}")
    safe, unsafe = (world.select(taught=True, unsafe=flag) for flag in (False, True))
    while True:
        facts = [
            rng.choice(unsafe if rng.random() < UNSAFE_SHARE else safe) for _ in range(rng.choice((1, 1, 2)))
        ]
        turns = [_turn(fact, manner, rng) for fact in facts]
        if rng.random() < COURTESY_SHARE:
            turns[0] = exchange_courtesies(rng, polite=True)
        yield Dialogue(tuple(turns), draw_system(rng))


def _turn(fact: Fact, manner: str, rng: random.Random) -> Turn:
    """A question in one of the taught wordings, and its well-mannered answer."""
    habit = MANNERS[manner][fact.kind.unsafe]
    value = "" if habit == "refuse" else fact.value
    return Turn(rng.choice(fact.taught_questions), answer(fact, habit, rng), value)
