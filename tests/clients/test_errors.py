"""The tree of errors."""

import pickle

import pytest

from eft_client import errors
from eft_client.errors import Busy, EftError, ServerAnswered, answered


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequest"),
        (401, "Unauthorised"),
        (403, "Unauthorised"),
        (404, "NotFound"),
        (409, "ServerAnswered"),
        (413, "TooLarge"),
        (422, "BadRequest"),
        (429, "Busy"),
        (500, "ServerFailed"),
        (502, "ServerFailed"),
        (503, "Busy"),
        (307, "ServerAnswered"),
    ],
)
def test_a_status_has_its_kind(status: int, name: str) -> None:
    assert type(answered(status, "words")) is getattr(errors, name)


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name[0].isupper()])
def test_every_error_survives_pickling(name: str) -> None:
    kind = getattr(errors, name)
    error = (
        kind(429, "words", "code", "param", "id", 3.0) if issubclass(kind, ServerAnswered) else kind("words")
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert isinstance(copy, EftError)


def test_the_message_says_the_servers_words_and_the_request() -> None:
    assert str(Busy(429, "try later", request_id="r-1")) == "429: try later (request r-1)"
    assert str(errors.Unauthorised(401, "no key")) == "401: no key"


def test_a_hostile_message_is_bounded_and_cannot_act_on_a_terminal() -> None:
    message = str(answered(400, "\x1b[2J" + "x" * 10_000, param="\x1b]0;mine\x07"))
    assert "\x1b" not in message
    assert len(message) < 2100


def test_kinds_are_also_the_built_in_ones() -> None:
    assert issubclass(errors.BadRequest, ValueError)
    assert issubclass(errors.TimedOut, TimeoutError)
    assert issubclass(errors.ConnectionFailed, ConnectionError)
