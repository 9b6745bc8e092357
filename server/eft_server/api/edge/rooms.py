"""Limits on concurrent work, in total and for each API key; requests that find no room queue."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from prometheus_client import Gauge

__all__ = ["Room"]


_PASSES = 64
"""How many requests of other keys may overtake one that waits for room."""


@dataclass(eq=False)
class _Waiting:
    key: str
    amounts: tuple[int, ...]
    passed_by: int = 0
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Room:
    """A limited amount of one or more resources, such as sequences and their tokens.

    Args:
        limits: the amount of each. A request that needs more waits until it can have all of it.
        share: the share of them that one key may have, 0 to 1; a key's only request may take more.
        gauge: Counts the requests that wait.
    """

    def __init__(self, limits: Sequence[int], share: float = 1.0, gauge: Gauge | None = None) -> None:
        self._gauge = gauge
        self._limits = tuple(limits)
        self._limits_of_a_key = tuple(max(1, int(limit * share)) for limit in limits)
        self._taken = [0] * len(self._limits)
        self._taken_by: dict[str, list[int]] = {}
        self._row: deque[_Waiting] = deque()
        self._waiting_by: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._row)

    @asynccontextmanager
    async def take(self, key: str, *amounts: int) -> AsyncIterator[None]:
        """Hold these amounts while the block runs; wait behind earlier requests, or while the key has its share."""
        bounded = tuple(map(min, amounts, self._limits))
        if self._row or not self.take_at_once(key, *bounded):
            with self._gauge.track_inprogress() if self._gauge else nullcontext():
                await self._wait(key, bounded)
        try:
            yield
        finally:
            self.give_back(key, *bounded)

    def take_at_once(self, key: str, *amounts: int) -> bool:
        """Take these amounts if there is room, without waiting; return whether there was. `give_back` frees them."""
        fits = self._fits(key, amounts)
        if fits:
            self._note(key, amounts)
        return fits

    def give_back(self, key: str, *amounts: int) -> None:
        """Free the amounts that `take_at_once` took."""
        self._note(key, [-amount for amount in amounts])
        if not any(self._taken_by[key]):
            del self._taken_by[key]
        self._admit()

    async def _wait(self, key: str, amounts: tuple[int, ...]) -> None:
        waiting = _Waiting(key, amounts)
        self._row.append(waiting)
        self._waiting_by[key] += 1
        self._admit()
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.done() and not waiting.admitted.cancelled():
                self.give_back(key, *amounts)
            else:
                with suppress(ValueError):  # It may have left the queue already.
                    self._row.remove(waiting)
                self._admit()
            raise
        finally:
            self._waiting_by[key] -= 1
            if not self._waiting_by[key]:
                del self._waiting_by[key]

    def _fits(self, key: str, amounts: Sequence[int]) -> bool:
        return _within(self._taken, amounts, self._limits) and self._key_fits(key, amounts)

    def _key_fits(self, key: str, amounts: Sequence[int]) -> bool:
        own = self._taken_by.get(key)
        return own is None or _within(own, amounts, self._limits_of_a_key)

    def _note(self, key: str, amounts: Sequence[int]) -> None:
        self._taken = [taken + more for taken, more in zip(self._taken, amounts, strict=True)]
        own = self._taken_by.get(key, [0] * len(amounts))
        self._taken_by[key] = [taken + more for taken, more in zip(own, amounts, strict=True)]

    def _admit(self) -> None:
        """Admit waiting requests in order.

        A request that waits for its key's share blocks only that key. One that waits for room blocks its key at once,
        and all others after a number of them have overtaken it: small requests need not wait for a large one.
        """
        if any(taken >= limit for taken, limit in zip(self._taken, self._limits, strict=True)):
            return
        passed, held_up, large = deque[_Waiting](), set[str](), list[_Waiting]()
        behind = 0
        # Once every key is held up, nobody further back can be let in. Behind a large one only the next are looked at,
        # so that a long row costs no more than a short one.
        while self._row and len(held_up) < len(self._waiting_by) and behind <= _PASSES:
            behind += bool(large)
            waiting = self._row[0]
            if not waiting.admitted.done():
                if waiting.key in held_up or not self._key_fits(waiting.key, waiting.amounts):
                    passed.append(waiting)
                    held_up.add(waiting.key)
                elif any(before.passed_by >= _PASSES for before in large):
                    break
                elif _within(self._taken, waiting.amounts, self._limits):
                    self._note(waiting.key, waiting.amounts)
                    waiting.admitted.set_result(None)
                    for before in large:
                        before.passed_by += 1
                else:
                    passed.append(waiting)
                    held_up.add(waiting.key)
                    large.append(waiting)
            self._row.popleft()
        self._row.extendleft(reversed(passed))


def _within(taken: Sequence[int], amounts: Sequence[int], limits: Sequence[int]) -> bool:
    return all(have + more <= limit for have, more, limit in zip(taken, amounts, limits, strict=True))
