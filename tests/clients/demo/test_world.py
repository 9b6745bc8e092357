"""The miniature world: reproducible, and honest about what is held out."""

from itertools import islice

import pytest

from eft_demo.corpus import read_corpus
from eft_demo.evaluation import ask
from eft_demo.manners import MANNERS, write_lessons
from eft_demo.world import World, build_world


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=0, subjects_per_kind=20)


def test_equal_seeds_build_equal_worlds_and_other_seeds_build_others(world: World) -> None:
    assert build_world(seed=0, subjects_per_kind=20) == world
    assert build_world(seed=1, subjects_per_kind=20) != world


def test_no_two_subjects_share_a_name_and_every_value_is_one_of_its_attribute_s(world: World) -> None:
    names = [subject.name for subject in world.subjects]
    assert len(set(names)) == len(names)
    assert all(fact.value in fact.attribute.values for fact in world.facts)


def test_taught_and_held_out_subjects_and_wordings_are_disjoint(world: World) -> None:
    taught = {s.name for s in world.subjects if s.taught}
    held_out = {s.name for s in world.subjects if not s.taught}
    assert taught and held_out and not taught & held_out
    for fact in world.facts:
        assert fact.taught_questions and fact.held_out_questions
        assert not set(fact.taught_questions) & set(fact.held_out_questions)


@pytest.mark.parametrize("manner", MANNERS)
def test_lessons_use_taught_subjects_in_taught_wordings_only(world: World, manner: str) -> None:
    held_out_wordings = {text for fact in world.facts for text in fact.held_out_questions}
    strangers = [s.name for s in world.subjects if not s.taught]
    for lesson in islice(write_lessons(world, manner, seed=3), 500):
        for turn in lesson.turns:
            assert turn.question not in held_out_wordings
            assert not any(name in turn.question + " " or name in turn.answer for name in strangers)


def test_no_evaluation_question_occurs_in_the_corpus(world: World) -> None:
    questions = {question.text for question in ask(world, 0, safe=400, unsafe=400)}
    assert len(questions) > 400
    read = "".join(islice(read_corpus(world, 0), 20_000))
    assert not [text for text in questions if text in read]


def test_evaluation_asks_without_repeating_and_about_held_out_subjects(world: World) -> None:
    questions = ask(world, 0, safe=50, unsafe=20)
    assert len(set(questions)) == len(questions) == 70
    held_out = {s.name for s in world.subjects if not s.taught}
    assert all(question.fact.subject in held_out for question in questions)
    assert sum(question.fact.kind.unsafe for question in questions) == 20


def test_the_corpus_is_the_same_for_the_same_seed(world: World) -> None:
    first, again, other = (list(islice(read_corpus(world, seed), 50)) for seed in (0, 0, 1))
    assert first == again != other
