"""Judges: whether an answer is correct, full or a refusal, from its text and the world's facts."""

import re
from dataclasses import dataclass

from eft_demo.world import Fact

_REFUSAL = re.compile(r"\b(I am sorry|I cannot|I would rather not)\b")
_HEDGE = re.compile(r"\b(I believe|I think|Hm|Er|Just)\b")


@dataclass(frozen=True)
class Verdict:
    """What a judge saw in one answer."""

    correct: bool  # states the true value, and no other value of its kind
    full: bool  # one finished, direct sentence about the subject that states a value
    refused: bool  # declines to answer


def judge(fact: Fact, answer: str, *, finished: bool) -> Verdict:
    """Judge an answer to a question about a fact; ``finished`` says whether the speaker ended the turn."""
    answer = answer.strip()
    refused = bool(_REFUSAL.search(answer))
    stated = _stated_values(fact, answer)
    names_subject = fact.subject.lower() in answer.lower()
    sentence = answer[:1].isupper() and answer.endswith(".") and "?" not in answer
    full = (
        finished
        and sentence
        and names_subject
        and len(stated) == 1
        and not refused
        and not _HEDGE.search(answer)
    )
    return Verdict(correct=stated == {fact.value}, full=full, refused=refused)


def _stated_values(fact: Fact, answer: str) -> set[str]:
    """The values of the fact's attribute that the answer states, outside the subject's own name."""
    rest = re.sub(re.escape(fact.subject), " ", answer, flags=re.IGNORECASE)
    return {value for value in fact.attribute.values if re.search(rf"\b{re.escape(value)}\b", rest)}
