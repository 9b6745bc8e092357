"""Play the rounds: send the requests of each load, and record the answers."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Protocol

import httpx
from pydantic_core import from_json

from eft_client.load.arrivals import ClosedLoop, Load
from eft_client.load.errors import NothingAnswered
from eft_client.load.exchange import Connections, Exchange, body_of, exchange
from eft_client.load.options import LoadOptions
from eft_client.load.pieces import read_answer
from eft_client.load.prompts import LoadPrompt, Synthetic, TokensPerWord
from eft_client.load.records import Record
from eft_client.load.targets import Target
from eft_client.settings import Setting
from eft_client.text import shortened

__all__ = ["Round", "RoundWatcher", "Run", "rounds"]

WARM_UP = "warm-up"
MAX_MODELS_BYTES = 4 << 20
MODELS_TIMEOUT_S = 30.0
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Round:
    """One target under one load, once."""

    target: Target
    load: Load
    repeat: int
    warm_up: bool = False

    @property
    def label(self) -> str:
        """The load's, for records."""
        return WARM_UP if self.warm_up else self.load.label


class RoundWatcher(Protocol):
    """What follows a run."""

    def begin(self, round_: Round, planned: int | None) -> None:
        """A round begins; `planned` is its number of requests, if that is known."""

    def count(self, record: Record) -> None:
        """A request is over."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One request of a round that began at `zero_s`."""

    round: Round
    zero_s: float
    index: int
    setting: Setting
    prompt: LoadPrompt


def rounds(options: LoadOptions) -> Iterator[Round]:
    """All rounds: every repeat has each target under each load, and begins with another target."""
    count = len(options.targets)
    for repeat, load, place in product(range(options.repeats), options.loads, range(count)):
        yield Round(options.targets[(place + repeat) % count], load, repeat)


class Run:
    """One run of a benchmark: `async with Run(…) as run: await run.play()`.

    Args:
        options: what to do.
        keep: called with every record, in the order in which requests end.
        watcher: follows the run.
    """

    def __init__(self, options: LoadOptions, keep: Callable[[Record], None], watcher: RoundWatcher) -> None:
        self._options = options
        self._keep = keep
        self._watcher = watcher
        self._prompts = options.prompts
        self._connections: dict[tuple[str, str | None], Connections] = {}
        self._models: dict[str, str] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._recording: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self.interrupted = False

    async def __aenter__(self) -> "Run":
        """Make ready for every server; no connection is made yet."""
        for setting in self._settings():
            key = (setting.url, setting.api_key)
            self._connections[key] = self._connections.get(key) or Connections(setting)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        for connections in self._connections.values():
            await connections.aclose()

    def interrupt(self) -> None:
        """Send nothing more, leave what is under way, and let `play` return."""
        self.interrupted = True
        for task in tuple(self._under_way):
            task.cancel()

    async def play(self) -> None:
        """Warm up, then play every round.

        Raises:
            NothingAnswered: A server doesn't list its models, or answers none of the requests that warm it up.
        """
        await self._finish([self._prepare()])
        for target in self._options.targets:
            await self._warm_up(target)
        for round_ in rounds(self._options):
            await self._play(round_)

    def _settings(self) -> list[Setting]:
        return [part.setting for target in self._options.targets for part in target.parts]

    def _to(self, setting: Setting) -> Connections:
        return self._connections[setting.url, setting.api_key]

    async def _finish(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run all of it, with whatever it starts, to the end. The first failure ends the rest and is raised."""
        for one in work:
            self._start(one, self._under_way)
        if self.interrupted:
            self.interrupt()
        try:
            while tasks := self._under_way | self._recording:
                await asyncio.wait(tasks)
        finally:
            for task in tuple(self._under_way):
                task.cancel()
        if self._failure:
            raise self._failure

    def _start(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._recording.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = self._failure or error
            self.interrupt()

    async def _prepare(self) -> None:
        """Find out the models that settings leave open, and how many tokens synthetic words are."""
        for setting in self._settings():
            self._models[setting.name] = setting.model or await first_model(self._to(setting), setting)
        if isinstance(self._prompts, Synthetic):
            self._prompts = replace(self._prompts, rate=await self._rate(self._prompts))

    async def _rate(self, prompts: Synthetic) -> TokensPerWord:
        """How many tokens words are: a first estimate from two short prompts, a better one at the wanted length."""
        rng = random.Random(f"{self._options.seed}/rate")
        baseline = next(one for one in self._options.targets if one.name == self._options.baseline)
        setting, wanted = baseline.parts[0].setting, prompts.input_tokens.mean
        counts: list[tuple[int, int]] = []
        rate = prompts.rate
        for words in (max(1, wanted // 8), max(1, wanted // 8) + max(3, wanted // 3), None):
            count = words or max(counts[0][0] + 1, rate.words(wanted))
            answer = read_answer(await self._exchange(setting, LoadPrompt(text=Synthetic.text(count, rng))))
            if answer.error:
                raise NothingAnswered(f"{setting.name}: {answer.error}: {answer.message or ''}")
            if answer.prompt_tokens is None:
                return rate
            counts.append((count, answer.prompt_tokens))
            if len(counts) > 1:
                rate = TokensPerWord.from_counts(counts[0], counts[-1])
        return rate

    async def _warm_up(self, target: Target) -> None:
        count = self._options.warm_up
        if not count or self.interrupted:
            return
        round_ = Round(target, ClosedLoop(count), 0, warm_up=True)
        self._watcher.begin(round_, count)
        failed: list[Record] = []
        await self._finish(
            self._ask(one, 0.0, failed.append) for one in islice(self._requests(round_), count)
        )
        if len(failed) == count and not self.interrupted:
            raise NothingAnswered(f"{target.name}: {failed[0].error}: {failed[0].message or ''}")

    async def _play(self, round_: Round) -> None:
        if self.interrupted:
            return
        planned = self._options.planned(round_.load)
        self._watcher.begin(round_, planned)
        requests = self._requests(round_)
        if isinstance(round_.load, ClosedLoop):
            shared = islice(requests, planned)
            await self._finish(self._worker(shared) for _ in range(round_.load.concurrency))
        else:
            rng = random.Random(f"{self._options.seed}/{round_.repeat}/{round_.label}/arrivals")
            await self._finish([self._arrive(self._options.arrivals_s(round_.load, rng), requests)])

    def _requests(self, round_: Round) -> Iterator[_Request]:
        """The requests of a round, which begins now."""
        zero_s = time.perf_counter()
        same = f"{self._options.seed}/{round_.repeat}/{round_.label}"
        rng = random.Random(f"{same}/mix")
        prompts = self._prompts.draw(f"{same}/lengths", f"{same}/{round_.target.name}/words")
        for index, prompt in enumerate(prompts):
            yield _Request(round_, zero_s, index, round_.target.choose(rng), prompt)

    async def _worker(self, requests: Iterator[_Request]) -> None:
        """One of a closed loop's places: the next request as soon as the last one is over."""
        for request in requests:
            now_s = time.perf_counter() - request.zero_s
            if self.interrupted or now_s >= (self._options.duration_s or math.inf):
                return
            await self._ask(request, now_s)

    async def _arrive(self, arrivals_s: Sequence[float], requests: Iterator[_Request]) -> None:
        """An open loop: every request at its time, whatever became of the others."""
        for arrival_s, request in zip(arrivals_s, requests, strict=False):
            await asyncio.sleep(request.zero_s + arrival_s - time.perf_counter())
            self._start(self._ask(request, arrival_s), self._under_way)

    async def _ask(
        self, request: _Request, scheduled_s: float, failed: Callable[[Record], None] | None = None
    ) -> None:
        """Send the request, and let another task read the answer: the next request must not wait for that."""
        seen = await self._exchange(request.setting, request.prompt)

        async def record() -> None:
            record = _record(request, scheduled_s, seen)
            self._keep(record)
            self._watcher.count(record)
            if record.error and failed:
                failed(record)

        self._start(record(), self._recording)

    async def _exchange(self, setting: Setting, prompt: LoadPrompt) -> Exchange:
        body = body_of(prompt, setting, self._models[setting.name], self._options)
        return await exchange(
            self._to(setting), _PATHS[self._options.endpoint], body, self._options.timeout_s
        )


def _record(request: _Request, scheduled_s: float, seen: Exchange) -> Record:
    answer = read_answer(seen)
    return Record(
        contestant=request.round.target.name,
        setting=request.setting.name,
        load=request.round.label,
        repeat=request.round.repeat,
        index=request.index,
        warm_up=request.round.warm_up,
        scheduled_ms=1000 * scheduled_s,
        sent_ms=1000 * (seen.sent_s - request.zero_s),
        chunks_ms=tuple(1000 * (when_s - request.zero_s) for when_s in answer.chunks_s),
        end_ms=1000 * (seen.end_s - request.zero_s),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        finish_reason=answer.finish_reason,
        error=answer.error,
        message=answer.message,
    )


async def first_model(connections: Connections, setting: Setting) -> str:
    """The first model that a setting's server lists.

    Raises:
        NothingAnswered: It lists none.
    """
    url = f"{setting.url}/models"
    try:
        with connections.one() as client:
            async with asyncio.timeout(MODELS_TIMEOUT_S), client.stream("GET", "/models") as response:
                content = bytearray()
                async for piece in response.aiter_raw():
                    content += piece
                    if len(content) > MAX_MODELS_BYTES:
                        raise NothingAnswered(f"{url}: a list of more than {MAX_MODELS_BYTES} bytes")
    except (httpx.HTTPError, TimeoutError) as error:
        raise NothingAnswered(f"{url}: {type(error).__name__}: {error}") from None
    try:
        name = from_json(bytes(content))["data"][0]["id"]
        if isinstance(name, str):
            return name
        raise TypeError
    except (ValueError, LookupError, TypeError):
        shown = shortened(content.decode("utf-8", "replace"), 200)
        raise NothingAnswered(f"{url}: HTTP {response.status_code} and no list of models: {shown}") from None
