"""Prompts of random tokens: measurements do not depend on their content."""

import random

from eft_server.family.vocabulary import Vocabulary

__all__ = ["random_ids"]


def random_ids(count: int, vocabulary: Vocabulary, rng: random.Random) -> list[int]:
    """Random ids from the widest range that all members share."""
    start, stop = max(vocabulary.shared, key=lambda ids: ids[1] - ids[0])
    return rng.choices(range(start, stop), k=count)
