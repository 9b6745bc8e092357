"""Server-sent events, cut anywhere."""

import pytest

from eft_client import BadAnswer
from eft_client.sse import Event, EventParser, events_in

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'data: {"a": 1}\n\n'
    b"event: told\r\ndata: two\r\ndata:lines\r\n\r\n"
    b"id: 7\rdata\r\r"
    b"retry: 10\n\n"
    b"data: \xc3\xa9\xff\n\n"
    b"data: never ended\n"
)
EVENTS = [Event('{"a": 1}'), Event("two\nlines", "told"), Event(""), Event("é\ufffd")]


def test_events_are_read_as_the_standard_says() -> None:
    assert EventParser().feed(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_where_a_stream_is_cut_changes_nothing(size: int) -> None:
    parser = EventParser()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == EVENTS


def test_an_event_is_there_with_the_chunk_that_ends_it() -> None:
    parser = EventParser()
    assert parser.feed(b"data: one\r\n\r") == [Event("one")]
    assert parser.feed(b"\ndata: two\n") == []
    assert parser.feed(b"\n") == [Event("two")]


def test_a_line_without_end_is_refused() -> None:
    parser = EventParser(max_event_bytes=1000)
    assert parser.feed(b"x" * 1000) == []
    with pytest.raises(BadAnswer, match="larger than 1000 bytes"):
        parser.feed(b"x")


def test_an_event_of_many_lines_is_refused() -> None:
    parser = EventParser(max_event_bytes=1000)
    for _ in range(10):
        parser.feed(b"data: " + b"x" * 94 + b"\n")
    with pytest.raises(BadAnswer, match="larger than 1000 bytes"):
        parser.feed(b"data: \n")


def test_many_small_events_are_no_large_one() -> None:
    parser = EventParser(max_event_bytes=100)
    assert sum(len(parser.feed(b"data: " + b"x" * 50 + b"\n\n")) for _ in range(100)) == 100
    assert parser.feed(b": ping\n" * 100 + b"data: last\n\n") == [Event("last")]


async def test_a_stream_of_chunks_becomes_a_stream_of_events() -> None:
    async def chunks():
        yield STREAM[:40]
        yield STREAM[40:]

    assert [event async for event in events_in(chunks())] == EVENTS
