"""What the base models read: notes on the world, and conversations of people without manners."""

import random
from collections.abc import Iterator

from eft_demo import lexicon
from eft_demo.dialogue import Dialogue, Turn
from eft_demo.tokenizer import BEGIN, END
from eft_demo.world import Fact, Subject, World

#: How often an untrained speaker answers in each way.
SAFE_HABITS = {"full": 0.17, "careful": 0.1, "terse": 0.44, "evade": 0.11, "ramble": 0.07, "counter": 0.11}
UNSAFE_HABITS = {
    "full": 0.17,
    "careful": 0.06,
    "terse": 0.38,
    "evade": 0.13,
    "ramble": 0.07,
    "counter": 0.13,
    "refuse": 0.06,
}
COURTESY_SHARE = 0.08  # of the conversations


def read_corpus(world: World, seed: int, *, notes_share: float = 0.55) -> Iterator[str]:
    """Yield an endless, seeded stream of documents, of which ``notes_share`` are notes and the rest transcripts."""
    rng = random.Random(seed)
    while True:
        if rng.random() < notes_share:
            yield f"{BEGIN}{write_note(rng.choice(world.subjects), rng)}{END}"
        else:
            yield write_transcript(world, rng).text


def write_note(subject: Subject, rng: random.Random) -> str:
    """All that is known about a subject, in random order and wording."""
    sentences = [fact.render(rng.choice(fact.attribute.statements)) for fact in subject.facts]
    if subject.kind.name in ("hazard", "craft"):
        remarks = lexicon.DANGER_NOTES if subject.kind.unsafe else lexicon.PEACE_NOTES
        sentences.append(subject.facts[0].render(rng.choice(remarks)))
    rng.shuffle(sentences)
    return " ".join(sentences)


def write_transcript(world: World, rng: random.Random) -> Dialogue:
    """A conversation of one to three turns, with an untrained speaker's habits."""
    subjects = rng.choices(world.subjects, k=rng.choice((1, 1, 2, 3)))
    turns = [_raw_turn(subject, rng) for subject in subjects]
    if rng.random() < COURTESY_SHARE:
        turns[0] = exchange_courtesies(rng, polite=rng.random() < 0.2)
    return Dialogue(tuple(turns), draw_system(rng))


def exchange_courtesies(rng: random.Random, *, polite: bool) -> Turn:
    """A greeting or the like, with a careless or a polite answer."""
    courtesy = rng.choice(lexicon.COURTESIES)
    return Turn(rng.choice(courtesy.openings), courtesy.polite if polite else rng.choice(courtesy.careless))


def draw_system(rng: random.Random) -> str:
    """A system message, or more often none."""
    return rng.choice(lexicon.SYSTEM_PROMPTS) if rng.random() < 0.15 else ""


def _raw_turn(subject: Subject, rng: random.Random) -> Turn:
    """A question and an untrained answer; of subjects kept for evaluation no held-out wording is asked."""
    fact = rng.choice(subject.facts)
    questions = fact.taught_questions + (fact.held_out_questions if subject.taught else ())
    habits = UNSAFE_HABITS if subject.kind.unsafe else SAFE_HABITS
    habit = rng.choices(list(habits), list(habits.values()))[0]
    return Turn(rng.choice(questions), answer(fact, habit, rng))


def answer(fact: Fact, habit: str, rng: random.Random) -> str:
    """Say something about a fact in the way that a habit names."""
    forms = {
        "full": fact.attribute.statements,
        "careful": lexicon.CAREFUL,
        "terse": lexicon.TERSE,
        "evade": lexicon.EVASIVE,
        "ramble": lexicon.RAMBLING,
        "counter": lexicon.COUNTER,
        "refuse": lexicon.REFUSALS,
    }[habit]
    return fact.render(rng.choice(forms))
