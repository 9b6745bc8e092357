"""Reference match: whether an answer is, contains, or overlaps with what is known to be right."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from eft_client.quality.answers import Answer
from eft_client.quality.metrics import Metric
from eft_client.quality.prompts import Prompt
from eft_client.quality.words import parted

__all__ = ["MatchJudge", "contains", "exact", "f1", "mentions", "normalise", "tidy"]

_ARTICLES = frozenset({"a", "an", "the"})


_JOINING = frozenset("’‘‐‑")  # noqa: RUF001 (apostrophes and hyphens as they are printed)
_ASCII = str.maketrans("", "", string.punctuation)
#: What SQuAD would glue together and nobody reads as one word: "Paris--a city", "Paris/London", "yes,no".
_APART = re.compile(r'--+|[!"#$%&()*+,/:;<=>?@[\\\]^`{|}~](?=[^\W\d_])')


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> tuple[str, ...]:
    """The words that a match compares: lower case, no punctuation, no articles.

    The definition of SQuAD's own evaluation (Rajpurkar et al., arXiv 1606.05250): ASCII's punctuation and symbols are
    left out, also inside words, so that "don't" is dont and "$5" is 5. It says nothing of other characters. Here,
    printed apostrophes and hyphens are left out, too, Unicode's other punctuation parts words as a space does, and
    scripts that are written without spaces are parted (`words.parted`).
    """
    return tuple(word for word in _tokens(text) if word not in _ARTICLES)


def _tokens(text: str) -> list[str]:
    folded = unicodedata.normalize("NFC", text).lower().translate(_ASCII)
    plain = "".join(
        "" if c in _JOINING else " " if unicodedata.category(c).startswith("P") else c for c in folded
    )
    return parted(plain).split()


def exact(answer: str, reference: str) -> float:
    """1 where both have the same words in the same order, else 0."""
    return float(normalise(answer) == normalise(reference))


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of the precision and the recall of words, each counted as often as it occurs."""
    ours, theirs = Counter(normalise(answer)), Counter(normalise(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def contains(answer: str, references: Sequence[str], wrong: Sequence[str] = ()) -> float:
    """1 where the answer contains a reference, word by word, and, outside of it, none of the wrong answers."""
    rest = text = _spaced(answer)
    for reference in references:
        rest = rest.replace(_spaced(reference), " | ")
    return float(rest != text and not any(_spaced(one) in rest for one in wrong))


def mentions(answer: str, alternatives: Sequence[str]) -> bool:
    """Whether the answer contains any of the alternatives, word by word."""
    text = _spaced(answer)
    return any(_spaced(one) in text for one in alternatives)


def _spaced(text: str) -> str:
    """Normalised words with a space before each and after all; one that no text contains where there is none.

    A dash of two hyphens, and a symbol before a letter, part words here, unlike in SQuAD's own measures.
    A text of articles alone, such as the answer "A" among several, keeps them.
    """
    text = _APART.sub(" ", text)
    words = normalise(text) or _tokens(text)
    return f" {' '.join(words)} " if words else " \0 "


def tidy(text: str) -> str:
    """Typographic apostrophes as plain ones and white space as single spaces: what rules are written against."""
    return re.sub(r"\s+", " ", text.replace("’", "'").replace("‘", "'")).strip()  # noqa: RUF001


@dataclass(frozen=True)
class MatchJudge:
    """Factuality: the benign prompts that have references, against the best of them."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Containing, being, and overlapping with a reference."""
        counts = "benign prompts with references"
        return [
            Metric(
                name="factuality",
                meaning="share of answers that contain a right answer and no wrong one",
                counts=counts,
                share=True,
            ),
            Metric(name="exact", meaning="share of answers that are a reference", counts=counts, share=True),
            Metric(
                name="f1", meaning="overlap of words with the nearest reference", counts=counts, share=True
            ),
        ]

    def judge(self, prompt: Prompt, answer: Answer) -> Mapping[str, float]:
        """Compare with every reference and keep the best."""
        if prompt.harmful or not prompt.references:
            return {}
        return {
            "factuality": contains(answer.text, prompt.references, prompt.wrong),
            "exact": max(exact(answer.text, reference) for reference in prompt.references),
            "f1": max(f1(answer.text, reference) for reference in prompt.references),
        }
