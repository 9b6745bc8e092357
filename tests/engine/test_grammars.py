"""The budget of one request's grammar, around a grammar whose slowness is set."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eft_server.engine.core import grammars, scheduler
from eft_server.engine.core.grammars import LimitedGrammar, limit_grammars


class Slow:
    """A grammar that accepts everything, after a while."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.taken_back = 0

    def accept_tokens(self, _request_id: str, _tokens: list[int]) -> bool:
        self._compute()
        return True

    def _compute(self) -> None:
        end = time.thread_time() + self.pause_s
        while time.thread_time() < end:
            pass

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        return tokens

    def fill_bitmask(self, bitmask: torch.Tensor, index: int) -> None:
        self._compute()
        bitmask[index] = 5

    def rollback(self, number: int) -> None:
        self.taken_back += number

    def is_terminated(self) -> bool:
        return False

    def reset(self) -> None:
        """Nothing to do."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr(grammars, "_FREE_S", 0.01)
    monkeypatch.setattr(grammars, "_BUDGET_S", 0.05)
    return Slow()


def test_a_grammar_within_its_budget_is_left_alone(slow: Slow) -> None:
    limited = LimitedGrammar(slow)  # type: ignore[arg-type]
    mask = torch.zeros(2, 1, dtype=torch.int32)
    for _ in range(100):
        assert limited.accept_tokens("a", [1])
        limited.fill_bitmask(mask, 1)
    assert mask.tolist() == [[0], [5]]
    assert limited.validate_tokens([1, 2]) == [1, 2]
    limited.rollback(2)
    assert slow.taken_back == 2


def test_a_grammar_that_takes_too_long_accepts_no_more(slow: Slow) -> None:
    slow.pause_s = 0.1
    limited = LimitedGrammar(slow)  # type: ignore[arg-type]
    mask = torch.zeros(1, 1, dtype=torch.int32)
    limited.fill_bitmask(mask, 0)
    start = time.thread_time()
    assert not limited.accept_tokens("a", [1])
    assert limited.validate_tokens([1]) == []
    limited.fill_bitmask(mask, 0)
    assert mask.tolist() == [[-1]]
    assert time.thread_time() - start < slow.pause_s


def test_waiting_for_a_busy_machine_costs_no_budget(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "_compute", lambda: time.sleep(0.1))
    limited = LimitedGrammar(slow)  # type: ignore[arg-type]
    assert all(limited.accept_tokens("a", [1]) for _ in range(2))


def test_every_grammar_of_a_manager_gets_a_budget_of_its_own(slow: Slow) -> None:
    manager: Any = SimpleNamespace(_create_grammar=lambda _request: slow)
    limit_grammars(manager)
    made = [manager._create_grammar(None) for _ in range(2)]
    assert all(isinstance(grammar, LimitedGrammar) for grammar in made)
    assert made[0] is not made[1]


def test_the_engines_scheduler_limits_grammars(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "EftScheduler", lambda **options: options["structured_output_manager"])
    manager: Any = SimpleNamespace(_create_grammar=lambda _request: slow, grammar_init=None)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=False))
    made: Any = scheduler.make_scheduler(structured_output_manager=manager, vllm_config=config)
    assert isinstance(made._create_grammar(None), LimitedGrammar)
