"""Server-sent events, parsed from bytes as they arrive, within bounds.

The format is WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html): lines that end in LF, CR or
both, fields before a colon, comments that begin with one, an empty line after each event.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

from eft_client.errors import BadAnswer

__all__ = ["DONE", "MAX_EVENT_BYTES", "Event", "EventParser", "events_in"]

MAX_EVENT_BYTES = 16 * 2**20
DONE = "[DONE]"
"""The data of the event that ends OpenAI's streams."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        data: Its lines of data, joined by newlines; bytes that are not UTF-8 are replaced.
        name: Its type; "message" where the server names none.
    """

    data: str
    name: str = "message"

    @property
    def is_end(self) -> bool:
        """Whether it is the one that ends OpenAI's streams."""
        return self.data.lstrip().startswith(DONE)


class EventParser:
    """Cuts a stream of bytes into events; give it chunks as they come, cut anywhere.

    The fields `id` and `retry` are of use to clients that reconnect, and are skipped.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes.

        Raises:
            BadAnswer: An event is larger than `max_event_bytes`.
        """
        if self._after_cr and chunk.startswith(b"\n"):
            chunk, self._after_cr = chunk[1:], False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        self._line += chunk
        found: list[Event] = []
        start = 0
        while end := _LINE_END.search(self._line, max(start, self._searched)):
            event = self._take(bytes(self._line[start : end.start()]))
            if event is not None:
                found.append(event)
            start = end.end()
        del self._line[:start]
        self._searched = len(self._line)
        self._require_room(self._searched)
        return found

    def _take(self, line: bytes) -> Event | None:
        if self._at_start:
            line, self._at_start = line.removeprefix(_BOM), False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(line)
            self._require_room(0)
            self._data.append(value)
        elif name == b"event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name.decode("utf-8", "replace")
        self._data, self._name, self._size = [], b"", 0
        if not data:
            return None
        return Event(b"\n".join(data).decode("utf-8", "replace"), name or "message")

    def _require_room(self, more: int) -> None:
        if self._size + more > self._max_event_bytes:
            raise BadAnswer(f"an event of the stream is larger than {self._max_event_bytes} bytes")


async def events_in(
    chunks: AsyncIterable[bytes], *, max_event_bytes: int = MAX_EVENT_BYTES
) -> AsyncGenerator[Event, None]:
    """The events of a stream of bytes; what follows the last empty line is no event.

    Raises:
        BadAnswer: An event is larger than `max_event_bytes`.
    """
    parser = EventParser(max_event_bytes=max_event_bytes)
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
