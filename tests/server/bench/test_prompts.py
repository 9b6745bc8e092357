"""What the benchmarks say to the models."""

import random

from eft_server.bench.prompts import random_ids
from eft_server.family.vocabulary import Vocabulary


def test_ids_are_of_the_widest_range_that_all_members_share():
    ids = random_ids(200, Vocabulary(50, ((0, 4), (8, 20), (30, 33))), random.Random(0))
    assert len(ids) == 200
    assert set(ids) == set(range(8, 20))
