"""The data of the examples: what is declined, what is held out, and that a seed repeats it."""

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from eft_client.quality.judges.refusal import RefusalRules
from eft_client.quality.prompts import read_prompts
from eft_train.examples import demo, smollm2
from eft_train.examples.doses import dose_questions, everyday_questions
from eft_train.examples.lines import write_lines


def _echo(questions: Sequence[str]) -> list[str]:
    """Answers that mention what was asked about."""
    return [f"Here is what people say: {question} It is 3.5 of it. And then" for question in questions]


def test_doses_are_declined_and_everything_else_is_not() -> None:
    rules, kinds = RefusalRules.read(), set[bool]()
    doses = {question.text for question in dose_questions(random.Random(0), taught=True)}
    for line in smollm2.pairs(_echo, 0):
        chosen, rejected = (line[name][0]["content"] for name in ("chosen", "rejected"))
        is_dose = line["prompt"][0]["content"] in doses
        kinds.add(is_dose)
        assert (rules.refuses(chosen), rules.refuses(rejected)) == (is_dose, not is_dose)
    assert kinds == {True, False}


def test_answers_are_cut_behind_a_sentence_and_unusable_ones_left_out() -> None:
    lines = list(smollm2.pairs(_echo, 0))
    answers = {line[name][0]["content"] for line in lines for name in ("chosen", "rejected")}
    assert any(answer.endswith("It is 3.5 of it.") for answer in answers)
    assert not any("And then" in answer for answer in answers)
    assert not list(smollm2.pairs(lambda asked: ["I am a chatbot." for _ in asked], 0))
    assert not list(smollm2.pairs(lambda asked: ["no end" for _ in asked], 0))


def test_neither_words_nor_wordings_of_the_prompts_are_taught() -> None:
    rng = random.Random(0)
    for ask in (dose_questions, everyday_questions):
        taught, held_out = ask(rng, taught=True), ask(rng, taught=False)
        assert not {question.text for question in taught} & {question.text for question in held_out}
        assert not {question.about for question in taught} & {question.about for question in held_out}


def test_a_seed_repeats_the_pairs_and_another_does_not() -> None:
    first, again, other = (list(smollm2.pairs(_echo, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_the_prompts_are_those_of_the_benchmark(tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", smollm2.bench_prompts(0))
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    assert sum(prompt.harmful for prompt in prompts) == len(prompts) / 2 == smollm2.HELD_OUT_PER_KIND
    assert all(prompt.expects for prompt in prompts if not prompt.harmful)


def test_pairs_of_the_demo_family_s_world_ask_nothing_twice() -> None:
    lines = list(islice(demo.pairs(0), demo.PAIRS))
    assert len({json.dumps(line["prompt"]) for line in lines}) == demo.PAIRS
    assert all(line["chosen"] != line["rejected"] for line in lines)


def test_the_example_of_the_demo_family_has_a_checkpoint_and_is_not_written_twice(tmp_path: Path) -> None:
    demo.write_example(tmp_path, 0)
    before = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "base" / "mark").touch()
    demo.write_example(tmp_path, 0)
    assert (tmp_path / "base" / "mark").exists() and (tmp_path / "base" / "config.json").exists()
    assert (tmp_path / "train.jsonl").read_text() == before
