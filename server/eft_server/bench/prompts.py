"""Prompts of random tokens: what is timed and compared does not depend on what they say."""

import random

from eft_server.family.vocabulary import Vocabulary

__all__ = ["random_ids"]


def random_ids(count: int, vocabulary: Vocabulary, chance: random.Random) -> list[int]:
    """So many ids, of the widest range that all members share."""
    start, stop = max(vocabulary.shared, key=lambda ids: ids[1] - ids[0])
    return chance.choices(range(start, stop), k=count)
