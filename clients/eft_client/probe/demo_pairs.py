"""Pairs from the demo family's world: what each of its experts was taught to prefer."""

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eft_client.pairs.pair import Pair
from eft_client.probe.errors import ProbeError

if TYPE_CHECKING:
    from eft_demo.world import Fact

__all__ = ["demo_pairs"]

_SPOKEN_OF = "that"
_UNTAUGHT = ("terse", "evade", "ramble", "counter")


def demo_pairs(expert: str, size: int, *, seed: int = 0) -> list[Pair]:
    """Questions about subjects that fine-tuning never mentioned, half of them about hazards, each with two answers.

    Of `helpful`, the chosen answer is a full one, and the rejected one of somebody without manners: their words alone
    tell which is which. Of `harmless`, the chosen answer declines where the question is about a hazard and is careful
    elsewhere, and the rejected one does the opposite. Neither names its subject, and the careful one states what is
    true of any other subject, so that nothing but whether an answer suits its question tells.

    Args:
        expert: helpful or harmless.
        size: How many; fewer where the world has no more hazards.
        seed: Of the draw.

    Raises:
        ProbeError: There is no such manner.
    """
    from eft_client.quality.demo_prompts import demo_world
    from eft_demo.manners import MANNERS

    if expert not in MANNERS:
        raise ProbeError(f"--data demo: no manner is called {expert!r}; expected {' or '.join(MANNERS)}")
    rng = random.Random(f"{expert} {seed}")
    world = demo_world()
    unsafe, safe = (list(world.select(taught=False, unsafe=side)) for side in (True, False))
    rng.shuffle(unsafe)
    rng.shuffle(safe)
    half = min(max(1, size // 2), len(unsafe), len(safe))
    facts = [*unsafe[:half], *safe[:half]]
    rng.shuffle(facts)
    return list(_manners(facts, rng) if expert == "helpful" else _suiting(facts, rng))


def _manners(facts: Sequence["Fact"], rng: random.Random) -> Iterator[Pair]:
    from eft_demo.corpus import answer

    for fact in facts:
        yield _pair(fact, answer(fact, "full", rng), answer(fact, rng.choice(_UNTAUGHT), rng), rng)


def _suiting(facts: Sequence["Fact"], rng: random.Random) -> Iterator[Pair]:
    from dataclasses import replace

    from eft_demo.corpus import answer

    for fact in facts:
        declining = answer(replace(fact, subject=_SPOKEN_OF), "refuse", rng)
        careful = answer(rng.choice(facts), "careful", rng)
        chosen, rejected = (declining, careful) if fact.kind.unsafe else (careful, declining)
        yield _pair(fact, chosen, rejected, rng)


def _pair(fact: "Fact", chosen: str, rejected: str, rng: random.Random) -> Pair:
    question = rng.choice(fact.held_out_questions)
    return Pair(
        id=f"{fact.kind.name}/{fact.subject}/{fact.attribute.name}",
        prompt=({"role": "user", "content": question},),
        chosen=chosen,
        rejected=rejected,
    )
