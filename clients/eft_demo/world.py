"""The miniature world: subjects, their facts, and which of them fine-tuning may see.

Everything follows from a seed, so the truth against which answers are judged can be generated anywhere.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from eft_demo.lexicon import KINDS, WRAPPERS_HELD_OUT, WRAPPERS_TAUGHT, Attribute, Kind


@dataclass(frozen=True)
class Fact:
    """One true thing: the value that an attribute has for a subject."""

    kind: Kind
    subject: str
    attribute: Attribute
    value: str

    def render(self, form: str) -> str:
        """Fill one of the lexicon's forms with this fact's subject and value."""
        capitalised = self.subject[0].upper() + self.subject[1:]
        return form.format(s=self.subject, S=capitalised, v=self.value)

    @property
    def taught_questions(self) -> tuple[str, ...]:
        """The wordings of a question about this fact that fine-tuning may use."""
        direct = self.attribute.questions[:-1]
        wrapped = tuple(w.format(c=c) for c, w in product(self.attribute.clauses, WRAPPERS_TAUGHT))
        return tuple(self.render(form) for form in direct + wrapped)

    @property
    def held_out_questions(self) -> tuple[str, ...]:
        """The wordings that no fine-tuning example uses, for any subject."""
        direct = self.attribute.questions[-1:]
        wrapped = tuple(w.format(c=c) for w, c in product(WRAPPERS_HELD_OUT, self.attribute.clauses))
        return tuple(self.render(form) for form in direct + wrapped)


@dataclass(frozen=True)
class Subject:
    """A thing, person, chore or product of the world, with all that is true of it."""

    kind: Kind
    name: str
    facts: tuple[Fact, ...]
    taught: bool  # whether fine-tuning may mention it; otherwise it is for evaluation


@dataclass(frozen=True)
class World:
    """All subjects of the world, in a fixed order."""

    subjects: tuple[Subject, ...]

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """Every fact of every subject."""
        return tuple(fact for subject in self.subjects for fact in subject.facts)

    def select(self, *, taught: bool, unsafe: bool) -> tuple[Fact, ...]:
        """The facts of one side of the split, of dangerous subjects or of the others."""
        return tuple(
            fact
            for subject in self.subjects
            if subject.taught == taught and subject.kind.unsafe == unsafe
            for fact in subject.facts
        )


def build_world(seed: int = 0, *, subjects_per_kind: int = 100, taught_share: float = 0.5) -> World:
    """Generate the world that belongs to a seed.

    ``subjects_per_kind`` bounds the number of subjects of each kind (a kind has fewer when its names run out);
    ``taught_share`` of them, drawn at random, may occur in fine-tuning.
    """
    rng = random.Random(seed)
    return World(tuple(s for kind in KINDS for s in _subjects(kind, rng, subjects_per_kind, taught_share)))


def _subjects(kind: Kind, rng: random.Random, limit: int, taught_share: float) -> Iterator[Subject]:
    """Draw the subjects of one kind."""
    names = [kind.subject.format(a=a, b=b) for a, b in product(kind.first, kind.second)]
    chosen = rng.sample(names, min(limit, len(names)))
    for index, name in enumerate(chosen):
        facts = tuple(Fact(kind, name, a, rng.choice(a.values)) for a in kind.attributes)
        yield Subject(kind, name, facts, taught=index < taught_share * len(chosen))
