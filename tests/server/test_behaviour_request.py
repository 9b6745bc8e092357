"""The field `eft` is described once: what parses it, /docs and the client's bodies have the same fields."""

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from eft_client import eft_body
from eft_server.api.requests.schemas import ChatRequest, ResponseRequest, ScoreRequest, TextRequest
from eft_server.behaviour.request import BehaviourRequest, TextBehaviourRequest
from eft_server.errors import BehaviourError

REQUESTS = [ChatRequest, ResponseRequest, ScoreRequest, TextRequest]
FIELDS = ["weights", "scale", "amplify", "filter", "coefficients", "report"]


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: each.__name__)
def test_the_documentation_describes_what_is_parsed(request_type: Any) -> None:
    described = request_type.describe()
    model = TextBehaviourRequest if request_type is TextRequest else BehaviourRequest
    properties = described["$defs"][model.__name__]["properties"]
    assert list(properties) == [*FIELDS, *(["prompts"] if request_type is TextRequest else [])]
    assert all(field["description"] for field in properties.values())
    # What is absent is the model's own, which is no value that could be sent.
    assert not any("default" in field for field in properties.values())


def test_the_client_can_say_all_that_is_parsed() -> None:
    assert list(inspect.signature(eft_body).parameters) == list(BehaviourRequest.model_fields) == FIELDS


def test_what_the_client_sends_is_parsed_as_it_was_given() -> None:
    given = {
        "weights": {"helpful": 0.7},
        "scale": 1.5,
        "amplify": 0.5,
        "filter": {"kind": "base", "top_p": 0.9},
        "coefficients": {"base": 1},
        "report": True,
    }
    assert BehaviourRequest.read(eft_body(**given)["eft"]).model_dump() == given


@pytest.mark.parametrize(
    ("eft", "param", "message"),
    [
        ({"filter": {"kind": "expert"}}, "eft.filter.top_p", "must be a number, not null"),
        ({"filter": {"top_p": 0.5}}, "eft.filter.kind", "null is not a kind of filter; known: expert, base"),
        ({"filter": {"kind": "base", "top_p": 2}}, "eft.filter.top_p", "2 is out of bounds; allowed: 0 to 1"),
        ({"filter": {"kind": "base", "top_p": True}}, "eft.filter.top_p", "must be a number, not true"),
        ({"filter": {"kind": "base", "top-p": 1}}, "eft.filter.top-p", "known: kind, top_p"),
        ({"filter": 1}, "eft.filter", "must be an object with kind and top_p, not 1"),
        ({"coefficients": 1}, "eft.coefficients", "must be an object of numbers by member, not 1"),
        ({"scale": None}, "eft.scale", "must be a number, not null"),
        ({"report": None}, "eft.report", "must be true or false, not null"),
        ({"report": 1}, "eft.report", "must be true or false, not 1"),
        ({"scale": "x", "rude": 1}, "eft.rude", "unknown key 'rude'; known: weights, scale, amplify"),
    ],
)
def test_a_refusal_says_where_and_what_is_expected(eft: Any, param: str, message: str) -> None:
    with pytest.raises(BehaviourError) as refused:
        BehaviourRequest.read(eft)
    assert refused.value.param == param
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("xargs", "param", "message"),
    [
        ({"eft.weights": {"helpful": 1}}, "vllm_xargs.eft.weights", "must be a number, not an object"),
        ({"eft.kind": "expert"}, "vllm_xargs.eft.kind", "must be a number, not 'expert'"),
        (
            {"eft.filter": "rude"},
            "vllm_xargs.eft.filter",
            "'rude' is not a kind of filter; known: expert, base",
        ),
        ({"eft.top_p": 2, "eft.filter": "base"}, "vllm_xargs.eft.top_p", "2 is out of bounds"),
    ],
)
def test_a_refusal_of_the_flat_form_names_the_key_that_was_sent(xargs: Any, param: str, message: str) -> None:
    with pytest.raises(BehaviourError) as refused:
        BehaviourRequest.read_flat(xargs)
    assert refused.value.param == param
    assert message in str(refused.value)


MANY = {f"k{index}": "" for index in range(1_000)}


@pytest.mark.parametrize(
    "eft",
    [MANY, {"weights": MANY}, {"coefficients": MANY}, {"filter": MANY}],
    ids=["keys", "weights", "coefficients", "filter"],
)
def test_as_much_that_is_wrong_as_a_body_holds_is_refused_at_the_first(eft: Any) -> None:
    with pytest.raises(BehaviourError, match=r"'k0'|not ''") as refused:
        BehaviourRequest.read(eft)
    # To list them all would take seconds, in which no other request is answered.
    listed = refused.value.__context__
    assert isinstance(listed, ValidationError) and listed.error_count() < 5
