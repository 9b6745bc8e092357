"""JSON without its traps."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.strict_json import MAX_DEPTH, parse_object

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_sound_json_comes_out_as_it_went_in(document: dict[str, Any]) -> None:
    assert parse_object(json.dumps(document).encode()) == document


@given(st.binary(max_size=50))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert isinstance(parse_object(body), dict)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"


def test_depth_is_bounded_exactly() -> None:
    parse_object(nested(MAX_DEPTH))
    with pytest.raises(ApiError, match="deeper"):
        parse_object(nested(MAX_DEPTH + 1))


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    "body", [b'{"a": 18446744073709551616}', b'{"a": -9223372036854775809}', b'{"a": 1e400}']
)
def test_numbers_that_nothing_behind_can_hold_are_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"64 bits|too large"):
        parse_object(body)
