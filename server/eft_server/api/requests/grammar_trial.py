"""The trial compile of a constraint: it is compiled and followed here, so that the engine gets only what works.

The backend is the engine's, xgrammar, with the 256 bytes as its vocabulary. If it cannot compile a constraint, the
refusal quotes it. Dead ends, and text that can be parsed in ever more ways, as by ``(a+)+b``, show in a walk of a few
hundred bytes; the engine's time budget stops the others (engine/core/grammars.py).
"""

import asyncio
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Protocol

import xgrammar
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from eft_server.api.edge.api_error import ApiError
from eft_server.engine.core.json_grammars import END, byte_compiler

__all__ = ["trial_compile"]

_STEPS = 400
_JSON_STEPS = 100
"""JSON's grammar is not ambiguous; the patterns inside a schema are walked separately."""

_MAX_REPEATS = 200
"""The engine's time grows with their square and its vocabulary: 0.6 s at this limit with 49,152 tokens."""

_SLOW = 150
"""A step may take this many times as long as one of the simplest grammar, measured beside it in this thread's CPU time:
the machine's speed and load must not decide about a request. Unambiguous grammars take up to 20 times as long, those
that parse a text in ever more ways 300 times and more after 400 bytes."""

_SLOW_IN_A_ROW = 8
_REPEATED = 5
_SIMPLE_STEPS = 20
_LONGEST_S = 2.0
"""Time limit of a walk; problems that it misses are left to the engine's budget."""

_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED = frozenset({"properties", "$defs", "definitions"})
_LOG_PREFIX = re.compile(r"^\[[\d:]+\] \S+: ")

Chooser = Callable[[list[int], int | None], int]


class Constrained(Protocol):
    """A vLLM request that can hold a constraint."""

    def extract_structured_outputs(self) -> StructuredOutputsParams | None:
        """The constraint that results from the request's fields, if any."""


async def trial_compile(request: Constrained, parameters: Iterable[dict[str, Any]] = ()) -> None:
    """Try out a request's constraint and its tools' parameters, outside the event loop.

    Args:
        request: The request.
        parameters: The JSON schemas of its tools' parameters.

    Raises:
        ApiError: One of them cannot be compiled or followed.
    """
    tried = list(_constraint(request))
    for index, schema in enumerate(parameters):
        tried += _parts("json", json.dumps(schema), f"tools.{index}")
    for kind, text, param in tried:
        try:
            fault = await asyncio.to_thread(_fault, kind, text)
        except _AmbiguousError:
            fault = _AMBIGUOUS
        if fault is not None:
            raise ApiError(f"{param}: {fault}.", param=param, code="invalid_value")


def _constraint(request: Constrained) -> Iterator[tuple[str, str, str]]:
    wanted = request.extract_structured_outputs()
    if wanted is None or wanted.json_object:
        return
    given = ("structured_outputs", "response_format", "text")
    param = next(name for name in given if getattr(request, name, None) is not None)
    yield from _parts(*_specification(wanted), param)


def _parts(kind: str, text: str, param: str) -> Iterator[tuple[str, str, str]]:
    """A constraint, preceded by the patterns inside a JSON schema, which a walk through the whole may miss."""
    if kind == "json":
        yield from (("regex", pattern, param) for pattern in _patterns(json.loads(text)))
    yield kind, text, param


def _patterns(schema: Any) -> Iterator[str]:
    inner = (
        schema.items() if isinstance(schema, dict) else enumerate(schema if isinstance(schema, list) else ())
    )
    for key, value in inner:
        if key == "pattern" and isinstance(value, str):
            yield value
        elif key in _NAMED:
            yield from (pattern for named in value.values() for pattern in _patterns(named))
        elif key not in _DATA:
            yield from _patterns(value)


def _specification(wanted: StructuredOutputsParams) -> tuple[str, str]:
    if wanted.regex is not None:
        return "regex", wanted.regex
    if wanted.choice is not None:
        return "choice", choice_as_grammar(wanted.choice)
    if wanted.grammar is not None:
        return "grammar", wanted.grammar
    assert wanted.json is not None, "the other kinds are refused"
    return "json", wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json)


_AMBIGUOUS = (
    "it can parse the same text in more and more ways, which takes longer and longer: avoid nested repetition such as "
    "(a+)+, and rules with two ways to the same text"
)


class _AmbiguousError(Exception):
    """The measured times suggest ambiguity; the measurement is not cached."""


@lru_cache(maxsize=256)
def _fault(kind: str, text: str) -> str | None:
    """Describe what is wrong with a constraint; None if nothing is.

    Raises:
        _AmbiguousError: Its steps take longer and longer.
    """
    if kind == "json" and has_xgrammar_unsupported_json_features(json.loads(text)):
        return "the schema combines keywords that cannot be enforced"
    repeats = sum(text.count(sign) for sign in "*+{")
    if kind in ("regex", "grammar") and repeats > _MAX_REPEATS:
        return f"it has {repeats} repetitions; allowed: up to {_MAX_REPEATS}"
    try:
        compiled = _compile(kind, text)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        return f"it cannot be compiled: {_LOG_PREFIX.sub('', first_line)[:300].rstrip('.')}"
    steps = _JSON_STEPS if kind == "json" else _STEPS
    deadline = time.thread_time() + _LONGEST_S
    faults = (_walk(compiled, choose, steps, deadline) for choose in _choosers())
    return next((fault for fault in faults if fault is not None), None)


def _compile(kind: str, text: str) -> Any:
    if kind == "regex":
        return byte_compiler().compile_regex(text)
    if kind == "json":
        return byte_compiler().compile_json_schema(text)
    lark = kind == "grammar" and grammar_is_likely_lark(text)
    return byte_compiler().compile_lark(text) if lark else byte_compiler().compile_grammar(text)


def _choosers() -> Iterator[Chooser]:
    """Ways to choose the next byte: the same again, at random, and the last one."""
    rng = random.Random(0)
    yield lambda allowed, last: last if last is not None and last in allowed else allowed[0]
    yield lambda allowed, _last: rng.choice(allowed)
    yield lambda allowed, _last: max(allowed)


def _walk(compiled: Any, choose: Chooser, steps: int, deadline: float) -> str | None:
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    last: int | None = None
    slow, simple_s = 0, _simple_step_s()
    matcher.fill_next_token_bitmask(mask, 0)
    for step in range(steps):
        allowed = _allowed(mask)
        if not allowed:
            return None if _may_end(mask) else f"nothing can follow after {step} bytes"
        last = choose(allowed, last)
        slow = slow + 1 if _step_s(matcher, last, mask) > _SLOW * simple_s else 0
        if slow >= _SLOW_IN_A_ROW:
            slow = 0
            # Other load only adds to a measurement, so the shortest of several is the best estimate.
            simple_s = min(simple_s, _simple_step_s())
            if _shortest_s(matcher, last, mask) > _SLOW * simple_s:
                raise _AmbiguousError
        if time.thread_time() > deadline:
            return None
    return None


def _simple_step_s() -> float:
    """The shortest of several measured steps of the simplest grammar."""
    matcher, mask = xgrammar.GrammarMatcher(_simplest()), xgrammar.allocate_token_bitmask(1, END + 1)
    return min(_step_s(matcher, ord("a"), mask) for _ in range(_SIMPLE_STEPS))


@lru_cache(maxsize=1)
def _simplest() -> xgrammar.CompiledGrammar:
    compiled: xgrammar.CompiledGrammar = byte_compiler().compile_regex("a*")
    return compiled


def _shortest_s(matcher: xgrammar.GrammarMatcher, last: int, mask: Any) -> float:
    """The shortest of several measurements of the last step."""
    shortest = math.inf
    for _ in range(_REPEATED):
        matcher.rollback(1)
        shortest = min(shortest, _step_s(matcher, last, mask))
    return shortest


def _step_s(matcher: xgrammar.GrammarMatcher, byte: int, mask: Any) -> float:
    """The time to accept a byte and to fill the mask with the bytes that may follow."""
    start = time.thread_time()
    matcher.accept_token(byte)
    matcher.fill_next_token_bitmask(mask, 0)
    return time.thread_time() - start


def _allowed(mask: Any) -> list[int]:
    words: list[int] = mask[0].tolist()
    return [byte for byte in range(END) if words[byte >> 5] >> (byte & 31) & 1]


def _may_end(mask: Any) -> bool:
    return bool(int(mask[0, END >> 5]) >> (END & 31) & 1)
