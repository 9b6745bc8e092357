"""An answer of one setting to one prompt, as judges and measures of diversity see it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Answers", "spoken"]

_NAME = r"(?:seed:)?(?:think|thinking|thought|reason|reasoning)"
#: The marks in use: <think>, [THINK], ◁think▷; each with its end.
_MARK = re.compile(rf"<(?P<a>/?)(?P<tag>{_NAME})>|\[(?P<b>/?)think\]|◁(?P<c>/?)think▷", re.IGNORECASE)


def spoken(text: str) -> str:
    """The answer to the user, without the reasoning before it, which servers without a parser leave in the text.

    Reasoning that was cut off has nothing behind it; templates may open it, so that the text holds only its end.
    """
    first = _MARK.search(text)
    if first is not None and _ends(first):
        return text[first.end() :].lstrip()
    while (opened := _MARK.match(text.lstrip())) and not _ends(opened):
        text = _behind(opened, text.lstrip())
    return text


def _ends(mark: re.Match[str]) -> bool:
    return bool(mark["a"] or mark["b"] or mark["c"])


def _behind(opened: re.Match[str], text: str) -> str:
    """What follows the end of the reasoning that a mark opens; nothing where it has none."""
    close = f"{opened[0][0]}/{opened[0][1:]}".lower()
    ended = next((mark for mark in _MARK.finditer(text) if mark[0].lower() == close), None)
    return text[ended.end() :].lstrip() if ended else ""


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
