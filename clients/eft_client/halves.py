"""Characters that were cut in two: some servers send an emoji as the two halves that UTF-16 has, a piece each."""

import re

__all__ = ["HALF", "Mender", "mended"]

HALF = re.compile(r"[\ud800-\udfff]")
_FIRST_HALF_AT_END = re.compile(r"[\ud800-\udbff]\Z")


def mended(text: str) -> str:
    """The text with halves that stand beside each other as one character, and a sign for one that stands alone."""
    if not HALF.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Mender:
    """Mends a stream's texts: a half at the end of a piece waits for the next piece of its choice."""

    def __init__(self) -> None:
        self._waiting: dict[int, str] = {}

    def mend(self, index: int, text: str, *, last: bool) -> str:
        """What a piece adds to the choice of this index; in its last piece nothing waits."""
        text = self._waiting.pop(index, "") + text
        if not last and (half := _FIRST_HALF_AT_END.search(text)):
            self._waiting[index] = half[0]
            text = text[:-1]
        return mended(text)
