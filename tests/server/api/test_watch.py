"""Watching an engine: what becomes of requests while it is lost, and when it is given up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from eft_server.api import watch
from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.watch import keep_watch, watched


class Pulse:
    """Says what a test wants."""

    def __init__(self) -> None:
        self.says: str | None = None
        self.has_ended = self.killed = self.beats = False

    def problem(self) -> str | None:
        return self.says

    async def beat(self) -> None:
        self.beats = True
        try:
            await asyncio.Event().wait()
        finally:
            self.beats = False

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(watch, "_INTERVAL_S", 0.01)
    return Pulse()


@pytest_asyncio.fixture
async def under_way() -> AsyncIterator[UnderWay]:
    yield UnderWay()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_end_while_the_engine_is_lost_and_are_let_in_when_it_is_back(
    pulse: Any, under_way: UnderWay
) -> None:
    async with watched(pulse, under_way):
        await until(lambda: pulse.beats)
        waiting = under_way.deadline(60, ApiError("late"))
        pulse.says = "the engine's process 7 is stopped"
        message = "The server cannot answer at present: the engine's process 7 is stopped."
        with pytest.raises(ApiError, match=message) as ended:
            await waiting.wait_for(asyncio.Event().wait())
        assert (ended.value.status, ended.value.headers) == (503, {"Retry-After": "5"})
        assert str(under_way.refusal) == message
        pulse.says = None
        await until(lambda: under_way.refusal is None)
    await until(lambda: not pulse.beats)
    assert not pulse.killed


async def test_what_is_seen_once_ends_no_request(pulse: Any, under_way: UnderWay) -> None:
    looks = iter(["stopped", None, "stopped", None, None])
    pulse.problem = lambda: next(looks, None)
    ended: list[ApiError] = []
    under_way.end = ended.append  # type: ignore[method-assign,assignment]
    async with watched(pulse, under_way):
        await until(lambda: next(looks, "over") == "over")
    assert ended == []


async def test_a_server_that_stops_lets_nobody_in_again(pulse: Any, under_way: UnderWay) -> None:
    async with watched(pulse, under_way):
        under_way.refuse(ApiError("stopping", status=503))
        pulse.says = "lost"
        await until(lambda: under_way._ended is not None)
        pulse.says = None
        await until(lambda: under_way._ended is None)
        assert str(under_way.refusal) == "stopping"


@pytest.mark.parametrize("ended", [True, False])
async def test_an_engine_that_has_ended_or_does_not_come_back_is_given_up(
    pulse: Any, under_way: UnderWay, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setattr(watch, "LOST_S", 0.0)
    async with watched(pulse, under_way):
        pulse.has_ended, pulse.says = ended, "gone"
        await until(lambda: pulse.killed)
        assert str(under_way.refusal) == "The server cannot answer at present: gone."
    await asyncio.wait_for(keep_watch(pulse, under_way), timeout=10)
