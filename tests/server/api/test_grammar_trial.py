"""What is tried out before the engine gets it: each constraint works, or is refused in words."""

import json
import time
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests.grammar_trial import trial_compile

pytestmark = pytest.mark.asyncio


class Asked:
    """A request with one constraint."""

    def __init__(self, **constraint: Any) -> None:
        self.structured_outputs = StructuredOutputsParams(**constraint)

    def extract_structured_outputs(self) -> StructuredOutputsParams:
        return self.structured_outputs


def word_list(count: int) -> str:
    return "|".join(f"word{number}" for number in range(count))


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": r"\d{3}-\d{4}"},
        {"regex": r"([a-z]+ )*[A-Z]"},
        {"regex": r"(\d{1,3}\.){3}\d{1,3}"},
        {"regex": ".*"},
        {"regex": "()"},
        {"regex": "a{1,100000000}"},
        {"regex": word_list(200)},
        {"grammar": 'root ::= "(" root ")" | "a"'},
        {"grammar": 'root ::= sum\nsum ::= term ("+" term)*\nterm ::= [0-9]+ | "(" sum ")"'},
        {"grammar": 'root ::= root "a" | "a"'},
        {"grammar": 'start: "a" start | "b"'},
        {"grammar": 'root ::= ""'},
        {"choice": ["a", 'b"\n\\', "ü"]},
        {"json": {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "^[a-z]+$"}}}},
        {"json": {"enum": [{"pattern": "["}]}},
        {"json_object": True},
    ],
)
async def test_what_works_is_let_through(constraint: dict[str, Any]) -> None:
    await trial_compile(Asked(**constraint))


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"regex": "[a"}, "Unclosed"),
        ({"regex": "(?=a)b"}, "Lookahead"),
        ({"regex": r"(a)\1"}, "Backreference"),
        ({"regex": r"\bfox\b"}, "Word boundary"),
        ({"regex": "a{5,2}"}, "Lower bound"),
        ({"regex": "a{99999999999999999999}"}, "too large"),
        ({"grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "Nest layer"),
        ({"regex": "a*b" * 201}, "201 repetitions"),
        ({"regex": "(a+)+b"}, "more and more ways"),
        ({"regex": "(a{1,1000}){1,1000}"}, "more and more ways"),
        ({"regex": "((((a{1,100}){1,100}){1,100}){1,100})"}, "more and more ways"),
        ({"grammar": "hello"}, "expected ':'"),
        ({"grammar": 'rule ::= "a"'}, "root"),
        ({"grammar": "root ::= missing"}, "missing"),
        ({"grammar": 'root ::= "a'}, "string literal"),
        ({"grammar": "root ::= root"}, "nothing can follow after 0 bytes"),
        ({"grammar": 'root ::= "ab" rest\nrest ::= rest'}, "nothing can follow after 2 bytes"),
        ({"grammar": 'root ::= root root | "a"'}, "more and more ways"),
        ({"json": {"type": "integer", "multipleOf": 3}}, "cannot be enforced"),
        ({"json": {"type": "string", "pattern": "(a+)+b"}}, "more and more ways"),
        ({"json": {"properties": {"enum": {"type": "string", "pattern": "(a+)+b"}}}}, "more and more ways"),
        ({"json": {"type": "string", "pattern": "a(?=b)"}}, "Lookahead"),
        ({"json": {"type": "string", "pattern": "a(^b)"}}, r"\^ is supported only at the ends"),
        ({"json": {"type": "string", "minLength": -4}}, "minLength is -4"),
        ({"json": {"type": "array", "minItems": 3, "maxItems": 1}}, "cannot be compiled"),
    ],
)
async def test_what_does_not_is_refused_in_words_and_soon(constraint: dict[str, Any], words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ApiError, match=words) as caught:
        await trial_compile(Asked(**constraint))
    assert time.monotonic() - start < 10
    assert caught.value.param == "structured_outputs"
    assert caught.value.status == 400


async def test_the_parameters_of_tools_are_tried_too() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+b"}}}
    with pytest.raises(ApiError) as caught:
        await trial_compile(Asked(json=json.dumps({})), [{}, schema])
    assert caught.value.param == "tools.1"
