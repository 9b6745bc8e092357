"""Replicas that prefill and decode in steps, behind a router: events in order of time."""

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from eft_server.bench.scale.cache import Key, PrefixCache
from eft_server.bench.scale.costs import ReplicaCosts
from eft_server.bench.scale.routers import Router
from eft_server.bench.scale.workload import Conversation

__all__ = ["Fleet", "Served"]


@dataclass
class Served:
    """One request, as it went.

    Attributes:
        arrived_s: When it came.
        prompt: Tokens of its prompt.
        answer: Tokens of its answer.
        replica: Who served it.
        cached: Tokens of its prompt that were in the cache.
        first_s: When its first token came.
        ended_s: When its last token came.
    """

    arrived_s: float
    prompt: int
    answer: int
    replica: int
    cached: int = 0
    first_s: float = math.nan
    ended_s: float = math.nan


@dataclass(eq=False)
class _Request:
    conversation: Conversation
    turn: int
    chain: list[tuple[Key, int]]
    served: Served
    left: int = 0

    @property
    def held(self) -> list[tuple[Key, int]]:
        """What it holds in the end: prompt and answer."""
        *before, (key, length) = self.chain
        return [*before, (key, length + self.served.answer)]


class _Engine:
    """A replica. Steps in which everybody decodes are taken together, until a request comes or ends."""

    def __init__(self, costs: ReplicaCosts) -> None:
        self._costs = costs
        self._cache = PrefixCache(costs.kv_tokens)
        self._waiting: deque[_Request] = deque()
        self._prefilling: deque[_Request] = deque()
        self._decoding: list[tuple[int, int, _Request]] = []
        self._ticks = self._made = self._context = 0
        self._began_s, self._each_s, self._steps = 0.0, 0.0, 0
        self._first: list[_Request] = []
        self.version = 0
        self.ongoing = 0

    def add(self, request: _Request, now_s: float) -> float | None:
        """Take a request; return when the replica is next to be woken, unless that is known already."""
        self._waiting.append(request)
        self.ongoing += 1
        if not self._steps:
            return self._begin(now_s)
        if self._first or self._prefilling:
            return None
        # It has to wait for the end of the step that runs.
        self._steps = min(self._steps, max(1, math.ceil((now_s - self._began_s) / self._each_s)))
        return self._wake_s()

    def wake(self, now_s: float) -> tuple[list[_Request], float | None]:
        """End the steps that were under way: the requests that ended, and when to wake the replica next."""
        self._ticks += self._steps
        self._context += self._steps * len(self._decoding)
        ended = []
        while self._decoding and self._decoding[0][0] <= self._ticks:
            _, _, request = heapq.heappop(self._decoding)
            ended.append(self._end(request, now_s))
        for request in self._first:
            request.served.first_s = now_s
            if request.served.answer == 1:
                ended.append(self._end(request, now_s, context=0))
                continue
            self._made += 1
            heapq.heappush(self._decoding, (self._ticks + request.served.answer - 1, self._made, request))
            self._context += request.served.prompt + 1
        return ended, self._begin(now_s)

    def _end(self, request: _Request, now_s: float, context: int | None = None) -> _Request:
        self._context -= request.served.prompt + request.served.answer if context is None else context
        self._cache.release([key for key, _ in request.chain])
        request.served.ended_s = now_s
        self.ongoing -= 1
        return request

    def _begin(self, now_s: float) -> float | None:
        self._admit()
        rows = len(self._decoding)
        tokens = self._prefill(self._costs.batched_tokens - rows)
        self.version += 1
        if not rows and not tokens:
            self._steps = 0
            return None
        self._began_s = now_s
        self._each_s = self._costs.step_s(rows, tokens, self._context)
        self._steps = 1 if tokens else self._decoding[0][0] - self._ticks
        return self._wake_s()

    def _admit(self) -> None:
        while self._waiting and len(self._decoding) + len(self._prefilling) < self._costs.sequences:
            request = self._waiting[0]
            cached = self._cache.cached(request.chain)
            if not self._cache.take(request.held):
                return
            # The last token is computed in any case: its logits are needed.
            request.served.cached = min(cached, request.served.prompt - 1)
            request.left = request.served.prompt - request.served.cached
            self._prefilling.append(self._waiting.popleft())

    def _prefill(self, budget: int) -> int:
        """Take a step's tokens of prompts, in order; `_first` then has those whose prompt ends with it."""
        tokens, self._first = 0, []
        while self._prefilling and budget > tokens:
            request = self._prefilling[0]
            part = min(request.left, budget - tokens)
            request.left -= part
            tokens += part
            if not request.left:
                self._first.append(self._prefilling.popleft())
        return tokens

    def _wake_s(self) -> float:
        return self._began_s + self._steps * self._each_s


@dataclass
class Fleet:
    """Replicas behind a router."""

    costs: ReplicaCosts
    count: int
    router: Router
    served: list[Served] = field(default_factory=list)
    _events: list[tuple[float, int, int, Conversation | None, int]] = field(default_factory=list)
    _numbered: int = 0

    def run(self, arriving: Iterable[Conversation], until_s: float) -> None:
        """Serve conversations.

        Args:
            arriving: The conversations.
            until_s: When to stop looking.
        """
        engines = [_Engine(self.costs) for _ in range(self.count)]
        for conversation in arriving:
            self._at(conversation.begins_s, 0, conversation)
        while self._events and self._events[0][0] <= until_s:
            now_s, _, number, comes, replica = heapq.heappop(self._events)
            if comes:
                request = self._arrived(comes, number, now_s, engines)
                engine = engines[request.served.replica]
                self._wake(request.served.replica, engine, engine.add(request, now_s))
            elif number == engines[replica].version:
                ended, wake_s = engines[replica].wake(now_s)
                for request in ended:
                    self._next_turn(request, now_s)
                self._wake(replica, engines[replica], wake_s)

    def _arrived(
        self, conversation: Conversation, turn: int, now_s: float, engines: list[_Engine]
    ) -> _Request:
        before = sum(one.tokens + one.answer for one in conversation.turns[:turn])
        own = before + conversation.turns[turn].tokens
        chain = [(("system", conversation.system), conversation.system_tokens)]
        chain.append((("conversation", conversation.number), own))
        replica = self.router.choose(conversation, [engine.ongoing for engine in engines])
        served = Served(now_s, conversation.system_tokens + own, conversation.turns[turn].answer, replica)
        self.served.append(served)
        return _Request(conversation, turn, chain, served)

    def _next_turn(self, request: _Request, now_s: float) -> None:
        turn = request.turn + 1
        if turn < len(request.conversation.turns):
            pause_s = request.conversation.turns[turn].pause_s
            self._at(now_s + pause_s, turn, request.conversation)

    def _wake(self, replica: int, engine: _Engine, wake_s: float | None) -> None:
        if wake_s is not None:
            self._at(wake_s, engine.version, replica=replica)

    def _at(self, when_s: float, number: int, comes: Conversation | None = None, replica: int = -1) -> None:
        """Note a turn, by its number, of a conversation that comes, or the waking of a replica, by its version."""
        self._numbered += 1
        heapq.heappush(self._events, (when_s, self._numbered, number, comes, replica))
