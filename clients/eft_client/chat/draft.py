"""An answer while it is streamed: what has come so far, and its summary afterwards."""

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from eft_client.chat.conversation import Reply
from eft_client.results import Piece, Usage

__all__ = ["Draft", "Show", "applied"]

Show = Callable[[str, bool], None]
"""Shows a piece of text, given whether the model is only thinking."""


@dataclass
class Draft:
    """What has come of one answer.

    Attributes:
        model: the name that was asked.
        text: the text so far.
        eft: the behaviour that the server applies, once it has sent it.
        usage: prompt and completion tokens, once it has sent them.
        finish_reason: why it ended, once it has.
        error: what went wrong, in words.
        stopped: whether it was interrupted here.
        thinking: whether the last text was reasoning and not part of the answer.
        first_s: when the first text came, in time.monotonic()'s seconds.
        last_s: when the last text came.
    """

    model: str
    text: str = ""
    eft: Mapping[str, Any] | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    error: str | None = None
    stopped: bool = False
    thinking: bool = False
    first_s: float = math.nan
    last_s: float = math.nan

    async def follow(self, pieces: AsyncGenerator[Piece, None], show: Show) -> None:
        """Take in and show pieces until they end.

        Raises:
            EftError: As the pieces do; what came before it remains.
        """
        async with aclosing(pieces):
            async for piece in pieces:
                self._take(piece, show)

    def _take(self, piece: Piece, show: Show) -> None:
        self.eft = piece.eft or self.eft
        self.usage = piece.usage or self.usage
        self.finish_reason = piece.finish_reason or self.finish_reason
        for words, thinking in ((_thought(piece.delta), True), (piece.text, False)):
            if words:
                self._add(words, thinking, show)

    def _add(self, words: str, thinking: bool, show: Show) -> None:
        self.last_s = time.monotonic()
        if math.isnan(self.first_s):
            self.first_s = self.last_s
        elif thinking != self.thinking:
            # An empty line separates reasoning from the answer; it belongs to the reasoning.
            show("\n\n", True)
        self.thinking = thinking
        self.text += "" if thinking else words
        show(words, thinking)

    @property
    def answer(self) -> Reply:
        """The answer as far as it came."""
        return Reply(self.text, self.model, self.eft)

    @property
    def summary(self) -> str:
        """The behaviour that was applied, the answer's length and speed, and how it ended."""
        words = [applied(self.model, self.eft)]
        if self.usage:
            count = self.usage.completion_tokens
            words.append(f"{count} tokens")
            if (spent_s := self.last_s - self.first_s) > 0 and count > 1:
                words.append(f"{(count - 1) / spent_s:.1f} tokens/s")
        if self.stopped:
            words.append("stopped")
        elif self.finish_reason not in (None, "stop"):
            words.append(
                "cut off at the limit" if self.finish_reason == "length" else str(self.finish_reason)
            )
        return " · ".join(words)


def applied(model: str, eft: Mapping[str, Any] | None) -> str:
    """The model and the behaviour that the server applies, in short; any JSON that it sent can be shown."""
    words = [model]
    weights = eft.get("weights") if eft else None
    if isinstance(weights, Mapping):
        words += [f"{name}={value:g}" for name, value in weights.items() if _is_number(value) and value]
    for key in ("scale", "amplify"):
        value = eft.get(key) if eft else None
        words += [f"{key}={value:g}"] if _is_number(value) and value != 1 else []
    keep = eft.get("filter") if eft else None
    if isinstance(keep, Mapping) and _is_number(top_p := keep.get("top_p")):
        words.append(f"filter={keep.get('kind')}:{top_p:g}")
    return " ".join(words)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thought(delta: Mapping[str, Any]) -> str:
    """What the model thinks before it answers, where the server says so, by either of the names in use."""
    for key in ("reasoning", "reasoning_content"):
        if isinstance(thought := delta.get(key), str) and thought:
            return thought
    return ""
