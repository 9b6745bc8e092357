"""An answer of one setting to one prompt, as judges and measures of diversity see it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Answers", "spoken"]

_OPENED = re.compile(r"\s*<(think|thinking)>")
_CLOSED = re.compile(r"</(?:think|thinking)>")


def spoken(text: str) -> str:
    """What is said to the user: without the reasoning before it, which servers without a parser leave in the text.

    Reasoning that was cut off has nothing behind it; templates may open it, so that the text holds its end alone.
    """
    opened = _OPENED.match(text)
    if opened:
        return text.partition(f"</{opened[1]}>")[2].lstrip()
    closed = _CLOSED.search(text)
    if closed and "<think" not in text[: closed.start()]:
        return text[closed.end() :].lstrip()
    return text


@dataclass(frozen=True)
class Answer:
    """What a sample says, and why it ended: `stop` where the model ended its turn, `length` where it was cut off."""

    text: str
    finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the model ended its turn by itself."""
        return self.finish_reason == "stop"


#: (setting's name, prompt's id) -> its samples, in the order of their seeds.
Answers = Mapping[tuple[str, str], Sequence[Answer]]
