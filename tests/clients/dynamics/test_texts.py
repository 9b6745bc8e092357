"""The texts that need no model."""

from collections import Counter

from eft_client.dynamics.texts.given import disordered, natural, seeded
from eft_client.dynamics.texts.text import HELD_OUT, TRAINING, places
from eft_client.pairs.pair import Pair

PAIRS = {
    TRAINING: [Pair(id=f"t{i}", prompt=f"Q{i}?", chosen=f"yes {i}", rejected=f"no {i}") for i in range(4)],
    HELD_OUT: [Pair(id=f"h{i}", prompt=f"P{i}?", chosen=f"ja {i}", rejected=f"nein {i}") for i in range(2)],
}


def test_a_prompt_gets_its_answers_and_those_of_other_prompts_of_both_sides() -> None:
    found = {text.kind: text.completion for text in natural(PAIRS, TRAINING, 0, seed=0, end=True)}
    assert found["chosen"] == "yes 0" and found["rejected"] == "no 0"
    assert found["other_trained"] in {"yes 1", "yes 2", "yes 3"} and found["other_held_out"] in {
        "ja 0",
        "ja 1",
    }
    assert list(natural(PAIRS, TRAINING, 0, seed=0, end=True)) == list(
        natural(PAIRS, TRAINING, 0, seed=0, end=True)
    )


def test_a_prompt_is_never_its_own_other() -> None:
    for index in range(2):
        for seed in range(10):
            found = {
                text.kind: text.completion for text in natural(PAIRS, HELD_OUT, index, seed=seed, end=True)
            }
            assert found["other_held_out"] == f"ja {1 - index}"


def test_an_answer_that_is_equal_is_no_other() -> None:
    same = {TRAINING: [Pair(id=str(i), prompt=f"Q{i}?", chosen="yes", rejected="no") for i in range(3)]}
    assert {text.kind for text in natural(same, TRAINING, 0, seed=0, end=True)} == {"chosen", "rejected"}


def test_disorder_keeps_the_tokens_or_their_number() -> None:
    tokens, pool = [5, 6, 7, 7, 8, 9, 10, 11], list(range(100, 120))
    permuted, random = disordered(tokens, pool, seeded(0, "disorder", "a"), end=True)
    assert Counter(permuted.completion) == Counter(tokens) and permuted.completion != tuple(tokens)
    assert len(random.completion) == len(tokens) and set(random.completion) <= set(pool)
    assert list(disordered(tokens, pool, seeded(0, "disorder", "a"), end=True)) == [permuted, random]


def test_sides_take_turns() -> None:
    assert places(PAIRS)[:5] == [(TRAINING, 0), (HELD_OUT, 0), (TRAINING, 1), (HELD_OUT, 1), (TRAINING, 2)]
