"""A limit on the time that one request's grammar may take from all the others.

The engine masks every step of every request in one loop, and a grammar that can parse the same text in many ways
takes longer with each token: for ``(a+)+b`` vLLM's matcher needs 0.3 ms after 100 letters and 0.3 s after 700.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typing_extensions import override
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from eft_server.engine.patches import overwrite

if TYPE_CHECKING:
    import torch
    from vllm.v1.request import Request

__all__ = ["LimitedGrammar", "limit_grammars"]

_FREE_S = 0.005
"""Time of a call that is not counted: far above the time of unambiguous grammars."""

_BUDGET_S = 1.0
"""The budget for the time beyond that of all of a request's calls together."""


class LimitedGrammar(StructuredOutputGrammar):
    """A grammar that accepts no more tokens once its budget is spent; vLLM then ends its request with an error."""

    def __init__(self, grammar: StructuredOutputGrammar) -> None:
        self._grammar = grammar
        self.spent_s = 0.0

    @override
    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Advance by these tokens, unless the budget is spent."""
        if self.spent_s > _BUDGET_S:
            return False
        with self._timed():
            return self._grammar.accept_tokens(request_id, tokens)

    @override
    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """The longest valid prefix; empty once the budget is spent."""
        if self.spent_s > _BUDGET_S:
            return []
        with self._timed():
            return self._grammar.validate_tokens(tokens)

    @override
    def fill_bitmask(self, bitmask: "torch.Tensor", batch_index: int) -> None:
        """Mark the tokens that may follow. Once the budget is spent, allow all: none will be accepted."""
        if self.spent_s > _BUDGET_S:
            bitmask[batch_index].fill_(-1)
            return
        with self._timed():
            self._grammar.fill_bitmask(bitmask, batch_index)

    @override
    def rollback(self, num_tokens: int) -> None:
        """Undo tokens that speculation has tried."""
        self._grammar.rollback(num_tokens)

    @override
    def is_terminated(self) -> bool:
        """Whether nothing more may follow."""
        return self._grammar.is_terminated()

    @override
    def reset(self) -> None:
        """Start again, with the rest of the budget."""
        self._grammar.reset()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.spent_s += max(0.0, time.thread_time() - start - _FREE_S)


def limit_grammars(manager: StructuredOutputManager) -> None:
    """Give every future grammar of vLLM's manager a budget."""
    create = manager._create_grammar

    def create_limited(request: "Request") -> StructuredOutputGrammar:
        return LimitedGrammar(create(request))

    overwrite(manager, "_create_grammar", create_limited)
