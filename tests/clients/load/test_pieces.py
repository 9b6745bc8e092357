"""What is made of the pieces of an answer."""

import json

import pytest

from eft_client.load.exchange import Exchange
from eft_client.load.pieces import read_answer

from .mock_server import chunk, event, usage

DONE = event(b"[DONE]")
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


def seen(*pieces: bytes, status: int = 200, error: str | None = None) -> Exchange:
    """Pieces that were read after 1, 2, 3 seconds and so on."""
    return Exchange(0.0, [(float(n), piece) for n, piece in enumerate(pieces, 1)], 99.0, status, error)


def test_every_piece_of_output_has_the_time_at_which_it_was_read() -> None:
    answer = read_answer(seen(ROLE, chunk("a"), chunk("b", "stop"), usage(7, 2), DONE))
    assert answer.chunks_s == [2.0, 3.0]
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 2)
    assert answer.finish_reason == "stop"
    assert answer.error is None


def test_who_speaks_is_no_output_but_a_token_without_text_is() -> None:
    blank = event({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]})
    both = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]})
    thought = event({"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "hm"}}]})
    assert read_answer(seen(ROLE, blank, chunk("a", "stop"))).chunks_s == [2.0, 3.0]
    assert read_answer(seen(both, chunk("", "stop"))).chunks_s == [1.0, 2.0]
    assert read_answer(seen(thought, chunk("", "stop"))).chunks_s == [1.0, 2.0]


def test_events_cut_anywhere_have_the_time_of_their_end() -> None:
    whole = chunk("a", chat=False) + chunk("b", "length", chat=False)
    answer = read_answer(seen(whole[:10], whole[10:-4], whole[-4:]))
    assert answer.chunks_s == [2.0, 3.0]


def test_nulls_are_no_output_and_take_nothing_back() -> None:
    null = event({"choices": None, "usage": None, "error": None})
    silent = event({"choices": [{"index": 0, "delta": None, "finish_reason": None, "logprobs": None}]})
    quiet = event({"choices": [{"index": 0, "text": None}]})
    counts = event({"choices": [], "usage": {"prompt_tokens": 7.0, "completion_tokens": 2.0}})
    unknown = event({"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": None}})
    answer = read_answer(seen(null, silent, quiet, chunk("a"), chunk("b", "stop"), counts, unknown))
    assert answer.chunks_s == [4.0, 5.0]
    assert (answer.prompt_tokens, answer.output_tokens, answer.error) == (7, 2, None)


def test_a_reason_of_another_type_ends_an_answer_and_nothing_comes_after_the_end_mark() -> None:
    last = event({"choices": [{"index": 0, "text": "b", "finish_reason": 2}]})
    answer = read_answer(seen(chunk("a"), last, event(b"[DONE] bye"), event(b"{oops")))
    assert (answer.finish_reason, answer.error) == ("2", None)


def test_a_character_that_was_cut_in_two_and_numbers_that_are_not_finite_fail_no_answer() -> None:
    first = event(
        {"choices": [{"index": 0, "delta": {"content": "\ud83d"}, "logprobs": {"a": float("nan")}}]}
    )
    answer = read_answer(seen(first, chunk("\ude00", "stop"), usage(7, 2), DONE))
    assert (answer.error, answer.chunks_s, answer.output_tokens) == (None, [1.0, 2.0], 2)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], "bad answer"),
        ([ROLE, DONE], "bad answer"),
        ([chunk("a")], "broken stream"),
        ([chunk("a"), DONE], "broken stream"),
        ([chunk("a"), event(b"{oops")], "bad answer"),
        ([event([1, 2])], "bad answer"),
        ([chunk("a"), event({"error": {"message": "out of memory"}}), DONE], "error in the stream"),
        ([chunk("a", "error"), DONE], "failed generation"),
        ([event({"choices": [7], "usage": {"prompt_tokens": "many"}})], "bad answer"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure_of_a_kind(pieces: list[bytes], error: str) -> None:
    assert read_answer(seen(*pieces)).error == error


def test_a_refusal_is_named_by_its_status_and_shown_without_its_tricks() -> None:
    answer = read_answer(seen(b'{"error": "\x1b[31m', b"red" * 1000, status=429))
    assert answer.error == "HTTP 429"
    assert answer.message is not None
    assert "\x1b" not in answer.message
    assert len(answer.message) <= 300


def test_what_failed_on_the_wire_stays_what_failed() -> None:
    assert read_answer(seen(chunk("a"), error="timeout")).error == "timeout"
    assert read_answer(Exchange(0.0, error="connection")).error == "connection"


def test_counts_that_are_none_are_left_out() -> None:
    odd = event({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 1e300}})
    answer = read_answer(seen(chunk("a", "stop"), odd))
    assert (answer.prompt_tokens, answer.output_tokens) == (None, None)
    assert json.dumps(answer.finish_reason) == '"stop"'
