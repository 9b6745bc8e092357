"""JSON that is written in pieces is the JSON that would be written at once, and no piece is long."""

import json
import math
from typing import Any

import pytest
from pydantic import BaseModel

from eft_server.api.serving.json_pieces import PIECE, in_pieces, written


class Inner(BaseModel):
    numbers: list[float | None]
    total: float | None


class Outer(BaseModel):
    name: str
    data: list[Inner]
    by_name: dict[str, Inner]
    nothing: dict[str, Inner]


INNER = Inner(numbers=[None, -0.5, *(-i / 7 for i in range(2 * PIECE))], total=None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        'ü "quoted" \\ \n',
        [],
        {},
        [[], [1, 2], []],
        [{}, {"a": [None]}],
        {'ü"': [1] * (PIECE + 1), "b": {"c": [], "d": True}},
        list(range(3 * PIECE)),
        Outer(name="x", data=[INNER, INNER], by_name={"ö": INNER}, nothing={}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pieces_are_the_whole(value: Any) -> None:
    expected = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    assert json.loads(written(value)) == expected
    assert b"".join(piece.encode() for piece in in_pieces(value)) == written(value)


def test_no_piece_holds_a_whole_column() -> None:
    answer = Outer(name="x", data=[INNER] * 3, by_name={"a": INNER}, nothing={})
    assert max(map(len, in_pieces(answer))) < 25 * PIECE


def test_what_json_has_no_word_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        written([1.0, math.nan])
