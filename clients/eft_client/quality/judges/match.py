"""Reference match: whether an answer equals, contains, or overlaps with a right one."""

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
from eft_client.quality.word_boundaries import separated, visible

__all__ = ["MatchJudge", "contains", "exact", "f1", "mentions", "normalise", "tidy"]

_ARTICLES = frozenset({"a", "an", "the"})
_JOINING = frozenset("’‘‐‑")  # noqa: RUF001 (apostrophes and hyphens as they are printed)
_ASCII = str.maketrans("", "", string.punctuation)
#: What SQuAD would glue together and nobody reads as one word: "Paris--a city", "Paris/London", "Answer:42". A comma or
#: a colon between two digits belongs to a number or a time.
_APART = re.compile(r"--+|\.\.+|(?!(?<=\d)[,:]\d)[!\"#$%&()*+,/:;<=>?@[\\\]^`{|}~]+[-']*")
#: "1879-1955" is two words, "COVID-19" one or two.
_HYPHEN = re.compile(r"(?<=\w)[-‐‑](?=\d)|(?<=\d)[-‐‑](?=\w)")  # noqa: RUF001
#: The same between digits as a full stop, a comma or a colon, and thousands parted by a space that breaks no line.
_INSIDE = re.compile(r"(?<=\d)[．，：٫٬](?=\d)")  # noqa: RUF001
_THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)")
_SAME = {"−": " -", "⁄": "/", "∕": "/"}  # noqa: RUF001


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> tuple[str, ...]:
    """The words that a match compares: lower case, no punctuation, no articles.

    The definition of SQuAD's own evaluation (Rajpurkar et al., arXiv 1606.05250): ASCII's punctuation and symbols are
    left out, also inside words, so that "don't" is dont and "$5" is 5. It says nothing of other characters. Here,
    printed apostrophes and hyphens are left out, too, and characters that take no room; Unicode's other punctuation
    parts words as a space does, and scripts that are written without spaces are parted (`word_boundaries.separated`).
    """
    return tuple(word for word in _tokens(text) if word not in _ARTICLES)


def _tokens(text: str) -> list[str]:
    folded = unicodedata.normalize("NFC", visible(text)).lower().translate(_ASCII)
    plain = "".join(
        "" if c in _JOINING else " " if unicodedata.category(c).startswith("P") else c for c in folded
    )
    return separated(plain).split()


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
    texts = _readings(answer)
    rests = [_without(text, references, reading) for reading, text in enumerate(texts)]
    found = any(rest != text for rest, text in zip(rests, texts, strict=True))
    return float(found and not any(_holds(rests, one) for one in wrong))


def mentions(answer: str, alternatives: Sequence[str]) -> bool:
    """Whether the answer contains any of the alternatives, word by word."""
    texts = _readings(answer)
    return any(_holds(texts, one) for one in alternatives)


def _holds(texts: Sequence[str], one: str) -> bool:
    """Whether a text, given in both its readings, has another's words in either."""
    return any(words in text for words, text in zip(_readings(one), texts, strict=True))


def _without(text: str, references: Sequence[str], reading: int) -> str:
    for reference in references:
        words = _readings(reference)[reading]
        while words in text:
            text = text.replace(words, " | ")
    return text


@lru_cache(maxsize=1 << 16)
def _readings(text: str) -> tuple[str, str]:
    """A text's words for a search, once with a hyphen beside a digit as a space, and once without it, as in SQuAD.

    A dash of two hyphens, and a symbol before a word, part words here, unlike in SQuAD's own measures; other symbols
    than ASCII's are words by themselves.
    """
    plain = text if text.isascii() else "".join(map(_plain, visible(text)))
    plain = _THOUSANDS.sub(lambda number: "".join(number[0].split()), _INSIDE.sub("", plain))
    return _spaced(_HYPHEN.sub(" ", plain)), _spaced(plain)


def _plain(character: str) -> str:
    """What a character stands for: a digit of any script, a letter in another width, a symbol by itself."""
    kind = unicodedata.category(character)
    if character.isascii() or kind[0] in "PZ":
        return character
    if character in _SAME:
        return _SAME[character]
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) > 1:
        plain = "".join(map(_plain, plain))
    return f" {plain} " if kind[0] == "S" or "/" in plain else plain


def _spaced(text: str) -> str:
    """Normalised words with a space before each and after all; one that no text contains where there is none.

    A text of articles only, such as the answer "A" among several, keeps them.
    """
    text = _APART.sub(" ", text)
    words = normalise(text) or _tokens(text)
    return f" {' '.join(words)} " if words else " \0 "


def tidy(text: str) -> str:
    """Typographic apostrophes as plain ones and white space as single spaces: what rules are written against.

    Characters that take no room are left out.
    """
    return re.sub(r"\s+", " ", visible(text).replace("’", "'").replace("‘", "'")).strip()  # noqa: RUF001


@dataclass(frozen=True)
class MatchJudge:
    """Factuality: the benign prompts that have references, against the best of them."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Whether it contains, equals, or overlaps with a reference."""
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
