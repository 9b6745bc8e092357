"""The contents of a streamed answer: when output came, how many tokens it was, why it ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eft_client.errors import BadAnswer
from eft_client.load.exchange import Exchange
from eft_client.results import parsed
from eft_client.sse import EventParser
from eft_client.text import shortened

__all__ = ["StreamedAnswer", "read_answer"]

MAX_MESSAGE_CHARS = 300
MAX_REASON_CHARS = 40
_FAILED = ("abort", "error")


@dataclass(slots=True)
class StreamedAnswer:
    """What a streamed answer says. `chunks_s` is when pieces of output were read, on the exchange's clock."""

    chunks_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str | None = None


def read_answer(seen: Exchange) -> StreamedAnswer:
    """Read an exchange; a failure of the connection stays the answer's failure."""
    answer = StreamedAnswer(
        error=seen.error, message=seen.message and shortened(seen.message, MAX_MESSAGE_CHARS)
    )
    if seen.status != 200:
        if seen.status and not seen.error:
            body = b"".join(piece for _, piece in seen.pieces).decode("utf-8", "replace")
            answer.error, answer.message = f"HTTP {seen.status}", shortened(body, MAX_MESSAGE_CHARS)
        return answer
    try:
        for when_s, data in _events(seen):
            _take(answer, when_s, data)
    except BadAnswer as error:
        _fail(answer, "bad answer", str(error))
    if not answer.chunks_s:
        _fail(answer, "bad answer", "the stream ended and no output was in it")
    elif answer.finish_reason is None:
        _fail(answer, "broken stream", "the stream ended without a finish_reason")
    elif answer.finish_reason in _FAILED:
        _fail(answer, "failed generation", f"finish_reason {answer.finish_reason!r}")
    return answer


def _events(seen: Exchange) -> Iterator[tuple[float, str]]:
    parser = EventParser()
    for when_s, piece in seen.pieces:
        for event in parser.feed(piece):
            if event.is_end:
                return
            yield when_s, event.data


def _take(answer: StreamedAnswer, when_s: float, data: str) -> None:
    try:
        chunk = parsed(data)
    except (ValueError, RecursionError):
        raise BadAnswer(f"an event that is no JSON: {data[:80]!r}") from None
    if not isinstance(chunk, dict):
        raise BadAnswer(f"an event that is no object: {data[:80]!r}")
    if chunk.get("error"):
        _fail(answer, "error in the stream", str(chunk["error"]))
    choices = chunk.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        _take_choice(answer, when_s, choices[0])
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = _count(usage.get("prompt_tokens"), answer.prompt_tokens)
        answer.output_tokens = _count(usage.get("completion_tokens"), answer.output_tokens)


def _take_choice(answer: StreamedAnswer, when_s: float, choice: dict[str, Any]) -> None:
    reason = choice.get("finish_reason")
    if isinstance(reason, str | int | float) and not isinstance(reason, bool):
        answer.finish_reason = shortened(str(reason), MAX_REASON_CHARS)
    if reason or not _says_nothing(choice):
        answer.chunks_s.append(when_s)


def _says_nothing(choice: dict[str, Any]) -> bool:
    """Whether a chunk has no output: no text at all, or only the role in a chat, which may be sent before a token."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") is None
    return isinstance(delta, dict) and "role" in delta and not any(v for k, v in delta.items() if k != "role")


def _count(value: Any, known: int | None) -> int | None:
    """The value as a count of tokens; what is known already where it is none."""
    return int(value) if type(value) in (int, float) and 0 <= value < 1 << 40 else known


def _fail(answer: StreamedAnswer, kind: str, message: str) -> None:
    if answer.error is None:
        answer.error, answer.message = kind, shortened(message, MAX_MESSAGE_CHARS)
