"""Ways to choose a replica for a request, from what a router can know."""

import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from eft_server.bench.scale.workload import Conversation

__all__ = ["ROUTERS", "Router"]


class Router(Protocol):
    """Chooses replicas."""

    def choose(self, conversation: Conversation, ongoing: Sequence[int]) -> int:
        """The replica for a request, given how many requests each of them has."""
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self, count: int, seed: int) -> None:
        self._next, self._count = seed % count, count

    def choose(self, conversation: Conversation, ongoing: Sequence[int]) -> int:
        """The next."""
        self._next = (self._next + 1) % self._count
        return self._next


class LeastOngoing:
    """The one with the fewest requests."""

    def __init__(self, count: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, conversation: Conversation, ongoing: Sequence[int]) -> int:
        """Any of the least loaded."""
        counts = np.asarray(ongoing)
        return int(self._rng.choice(np.flatnonzero(counts == counts.min())))


class SessionHash:
    """The one that a conversation's id hashes to, whatever it has to do."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def choose(self, conversation: Conversation, ongoing: Sequence[int]) -> int:
        """Always the same."""
        return zlib.crc32(f"{self._seed}/{conversation.number}".encode()) % self._count


class Prefix:
    """The one that has seen the longest part of the prompt, unless it has much more to do than the mean.

    Then, or where nobody has seen the conversation: the less loaded of two that have seen the system prompt, and where
    these have too much to do as well, the less loaded of any two. It remembers what it sent where and does not learn
    of evictions.
    """

    _BOUND = 1.25
    """How many times the mean a replica may have to do."""

    _MEMORY = 200_000

    def __init__(self, count: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._count = count
        self._conversations: OrderedDict[int, int] = OrderedDict()
        self._systems: dict[int, list[int]] = {}

    def choose(self, conversation: Conversation, ongoing: Sequence[int]) -> int:
        """The best of what is known."""
        most = self._BOUND * (sum(ongoing) / self._count) + 1
        seen = self._systems.setdefault(conversation.system, [])
        chosen = self._conversations.get(conversation.number)
        if chosen is None or ongoing[chosen] > most:
            chosen = self._less_loaded(seen, ongoing) if seen else None
        if chosen is None or ongoing[chosen] > most:
            chosen = self._less_loaded(range(self._count), ongoing)
        self._conversations[conversation.number] = chosen
        self._conversations.move_to_end(conversation.number)
        if len(self._conversations) > self._MEMORY:
            self._conversations.popitem(last=False)
        if chosen not in seen:
            seen.append(chosen)
        return chosen

    def _less_loaded(self, among: Sequence[int], ongoing: Sequence[int]) -> int:
        two = [among[int(self._rng.integers(len(among)))] for _ in range(2)]
        return min(two, key=lambda replica: ongoing[replica])


class _Made(Protocol):
    def __call__(self, count: int, seed: int) -> Router: ...


ROUTERS: Mapping[str, _Made] = {
    "round robin": RoundRobin,
    "least ongoing": LeastOngoing,
    "session hash": SessionHash,
    "prefix": Prefix,
}
