"""Rounds against a server on a socket whose answers wait for events, so that every order is certain."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from eft_client.load.arrivals import ClosedLoop, OpenLoop, Trace
from eft_client.load.errors import LoadError, NothingAnswered
from eft_client.load.options import LoadOptions, read_limits
from eft_client.load.prompts import FromFile, Lengths, LoadPrompt, Synthetic
from eft_client.load.records import Record
from eft_client.load.run import Round, Run, rounds
from eft_client.load.targets import targets
from eft_client.settings import Setting, parse_setting

from .mock_server import MockServer, Reply, at_once, chunk, event, in_turn, refusing, usage

PROMPTS = FromFile(prompts=(LoadPrompt(text="one two three"),))


def options(*settings: Setting, mixes=(), **fields: Any) -> LoadOptions:
    measured = targets(settings, mixes, parts_too=not mixes)
    usual = {
        "loads": (ClosedLoop(2),),
        "prompts": PROMPTS,
        "requests": 4,
        "repeats": 1,
        "warm_up": 0,
        "max_tokens": 3,
    }
    return LoadOptions(targets=tuple(measured), baseline=measured[0].name, **(usual | fields))


class Watched:
    """Remembers what it was told; sets an event when so many requests are over."""

    def __init__(self, count: int = 1 << 30) -> None:
        self.begun: list[tuple[str, str, int, int | None]] = []
        self.over = 0
        self.enough = asyncio.Event()
        self._count = count

    def begin(self, round_: Round, planned: int | None) -> None:
        self.begun.append((round_.target.name, round_.label, round_.repeat, planned))

    def count(self, record: Record) -> None:
        self.over += 1
        if self.over >= self._count:
            self.enough.set()


async def played(given: LoadOptions, watcher: Watched | None = None) -> list[Record]:
    records: list[Record] = []
    async with Run(given, records.append, watcher or Watched()) as run:
        await run.play()
    return records


def mock(server: MockServer, text: str = "mock") -> Setting:
    return parse_setting(text, url=server.url)


async def test_a_closed_loop_keeps_so_many_requests_under_way_and_no_more() -> None:
    both = asyncio.Barrier(3)

    async def pieces() -> AsyncGenerator[bytes, None]:
        await both.wait()  # three are under way at once, or nobody gets on
        for piece in (chunk("a"), chunk("b", "stop"), usage(5, 2), event(b"[DONE]")):
            yield piece

    async with MockServer(lambda body: Reply(pieces())) as server:
        records = await played(options(mock(server), loads=(ClosedLoop(3),), requests=9))
    assert server.most_under_way == 3
    assert [record.error for record in records] == [None] * 9
    assert sorted(record.index for record in records) == list(range(9))


async def test_connections_are_used_again() -> None:
    async with MockServer() as server:
        await played(options(mock(server), loads=(ClosedLoop(3),), requests=30, repeats=2))
    assert len(server.bodies) == 60
    assert 1 <= server.connections_made <= 3


async def test_an_open_loop_waits_for_nobody() -> None:
    all_are_there = asyncio.Barrier(5)

    async def pieces() -> AsyncGenerator[bytes, None]:
        await all_are_there.wait()
        for piece in (chunk("a", "stop"), event(b"[DONE]")):
            yield piece

    async with MockServer(lambda body: Reply(pieces())) as server:
        trace = Trace("five", (0.0, 0.0, 0.001, 0.002, 0.002))
        records = await played(options(mock(server), loads=(trace,), requests=None))
    assert [record.error for record in records] == [None] * 5
    assert sorted(record.scheduled_ms for record in records) == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert all(record.sent_ms >= record.scheduled_ms for record in records)


async def test_times_are_stamped_when_pieces_are_read() -> None:
    written: list[float] = []
    go_on = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        written.append(time.perf_counter())
        yield chunk("a")
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        await go_on.wait()
        written.append(time.perf_counter())
        yield chunk("b", "stop")

    async with MockServer(lambda body: Reply(pieces())) as server:
        (record,) = await played(options(mock(server), requests=1))
    first, second = record.chunks_ms
    # Sent before the first piece was written, and the second one read after it was: whatever the machine does.
    assert second - record.sent_ms >= 1000 * (written[1] - written[0]) >= 49
    assert record.sent_ms < first < second <= record.end_ms


async def test_a_request_asks_what_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFT_API_KEY", "secret")
    async with MockServer() as server:
        setting = mock(server, "x=demo helpful=0.7 scale=1.5")
        given = options(setting, requests=1, temperature=0.5, body={"ignore_eos": True, "seed": 3})
        (record,) = await played(given)
    assert server.bodies == [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "one two three"}],
            "max_tokens": 3,
            "temperature": 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
            "eft": {"weights": {"helpful": 0.7}, "scale": 1.5},
            "ignore_eos": True,
            "seed": 3,
        }
    ]
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (9, 3, "length")


async def test_the_completions_endpoint_is_asked_with_a_prompt_and_no_eft_where_none_is_set() -> None:
    async with MockServer() as server:
        await played(options(mock(server), requests=1, endpoint="completions"))
    assert server.bodies[0]["prompt"] == "one two three"
    assert "messages" not in server.bodies[0]
    assert "eft" not in server.bodies[0]
    assert "temperature" not in server.bodies[0]


async def test_a_setting_without_a_model_asks_for_the_first_that_is_listed() -> None:
    async with MockServer(models=("first", "second")) as server:
        await played(options(Setting("server", url=server.url), requests=1))
    assert server.bodies[0]["model"] == "first"


async def test_a_mix_asks_by_share_and_says_which_setting_each_request_had() -> None:
    async with MockServer() as server:
        settings = (mock(server, "a=mock helpful=1"), mock(server, "b=mock harmless=1"))
        records = await played(options(*settings, mixes=["m=1*a 3*b"], requests=100))
    asked = Counter(str(body["eft"]["weights"]) for body in server.bodies)
    assert asked["{'harmless': 1.0}"] > asked["{'helpful': 1.0}"] > 5
    assert Counter(record.setting for record in records) == {
        "a": asked["{'helpful': 1.0}"],
        "b": asked["{'harmless': 1.0}"],
    }
    assert {record.contestant for record in records} == {"m"}


def test_rounds_take_turns_and_each_repeat_begins_with_another() -> None:
    settings = [parse_setting(f"{name}=mock") for name in "abc"]
    order = [round_.target.name for round_ in rounds(options(*settings, repeats=3))]
    assert "".join(order) == "abcbcacab"
    loads = [
        round_.label for round_ in rounds(options(settings[0], loads=(ClosedLoop(1), OpenLoop(2)), repeats=2))
    ]
    assert loads == ["concurrency 1", "2 requests/s"] * 2


async def test_targets_on_one_server_never_get_the_same_made_up_prompt() -> None:
    made_up = Synthetic(input_tokens=Lengths(mean=40, spread=0.5), output_tokens=Lengths(mean=3))
    async with MockServer() as server:
        given = options(mock(server, "a=mock"), mock(server, "b=mock"), prompts=made_up, repeats=2, warm_up=2)
        records = await played(given)
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(prompts)) == len(prompts) == 3 + 2 * 2 + 2 * 2 * 4
    lengths = {
        name: [
            (r.repeat, r.index, r.prompt_tokens) for r in records if r.contestant == name and not r.warm_up
        ]
        for name in "ab"
    }
    assert sorted(lengths["a"]) == sorted(lengths["b"])


async def test_made_up_prompts_have_the_length_by_the_server_s_count() -> None:
    made_up = Synthetic(input_tokens=Lengths(mean=63), output_tokens=Lengths(mean=3))
    async with MockServer() as server:  # which counts 3 + 2 · words
        records = await played(options(mock(server), prompts=made_up))
    assert {record.prompt_tokens for record in records} == {63}


async def test_warm_up_is_recorded_apart() -> None:
    watcher = Watched()
    async with MockServer() as server:
        records = await played(options(mock(server), warm_up=3), watcher)
    assert Counter(record.warm_up for record in records) == {True: 3, False: 4}
    assert watcher.begun == [("mock", "warm-up", 0, 3), ("mock", "concurrency 2", 0, 4)]
    assert watcher.over == 7


async def test_a_duration_ends_the_sending_and_what_is_under_way_is_finished() -> None:
    async with MockServer() as server:
        records = await played(options(mock(server), requests=None, duration_s=0.2))
    assert len(records) >= 2
    assert all(record.error is None for record in records)
    assert all(record.sent_ms < 400 for record in records)


async def cut() -> AsyncGenerator[bytes, None]:
    yield chunk("a")


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (refusing(429, "slow down"), "HTTP 429", "slow down"),
        (refusing(500), "HTTP 500", ""),
        (lambda body: Reply(cut(), cut=True), "broken stream", "RemoteProtocolError"),
        (lambda body: Reply(in_turn(chunk("a"))), "broken stream", "finish_reason"),
        (lambda body: Reply(in_turn(b"<html>")), "bad answer", "no output"),
    ],
)
async def test_failures_are_recorded_by_kind_and_never_retried(script, error: str, message: str) -> None:
    async with MockServer(script) as server:
        records = await played(options(mock(server)))
    assert [record.error for record in records] == [error] * 4
    assert message in (records[0].message or "")
    assert len(server.bodies) == 4


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    async def never() -> AsyncGenerator[bytes, None]:
        yield chunk("a")
        await asyncio.Event().wait()

    async with MockServer(lambda body: Reply(never())) as server:
        (record,) = await played(options(mock(server), requests=1, timeout_s=0.05))
    assert record.error == "timeout"
    assert "0.05 s" in (record.message or "")


async def test_an_answer_without_end_is_given_up() -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b":" * (1 << 20)

    async with MockServer(lambda body: Reply(endless())) as server:
        (record,) = await played(options(mock(server), requests=1))
    assert record.error == "bad answer"
    assert "bytes" in (record.message or "")


async def test_a_server_that_is_not_there_is_named() -> None:
    async with MockServer() as server:
        setting = mock(server)
    with pytest.raises(NothingAnswered, match="mock: connection: ConnectError"):
        await played(options(setting, warm_up=2))
    with pytest.raises(NothingAnswered, match=f"{server.url}/models: ConnectError"):
        await played(options(Setting("server", url=server.url)))


async def test_a_server_without_models_is_named() -> None:
    async with MockServer(models=()) as server:
        with pytest.raises(NothingAnswered, match="no list of models"):
            await played(options(Setting("server", url=server.url)))


async def test_a_target_that_cannot_be_asked_ends_the_run_before_it_is_measured() -> None:
    async with MockServer(refusing(400, "no such expert")) as server:
        with pytest.raises(NothingAnswered, match=r"mock: HTTP 400: .*no such expert"):
            await played(options(mock(server), warm_up=2))
    assert len(server.bodies) == 2


@pytest.mark.parametrize("load", [ClosedLoop(3), Trace("all at once", (0.0, 0.0, 0.0, 3600.0))])
async def test_an_interrupt_keeps_what_was_measured_and_what_was_under_way(load) -> None:
    answered = 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal answered
        yield chunk("a")
        answered += 1
        if answered > 1:
            await asyncio.Event().wait()
        yield chunk("b", "stop")

    watcher = Watched(1)
    records: list[Record] = []
    async with MockServer(lambda body: Reply(pieces())) as server:
        given = options(mock(server), loads=(load,), requests=None, repeats=5)
        async with Run(given, records.append, watcher) as run:
            playing = asyncio.create_task(run.play())
            await watcher.enough.wait()
            run.interrupt()
            await playing
    errors = Counter(record.error for record in records)
    assert run.interrupted
    assert errors[None] == 1
    assert errors["interrupted"] >= 2
    assert len(watcher.begun) == 1


async def test_a_record_that_cannot_be_kept_ends_the_run() -> None:
    def full(record: Record) -> None:
        raise OSError("no space left")

    async with MockServer() as server, Run(options(mock(server), requests=1000), full, Watched()) as run:
        with pytest.raises(OSError, match="no space"):
            await run.play()
    assert len(server.bodies) < 1000


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"requests": 3, "duration_s": 1.0}, "not both"),
        ({"body": {"stream": False}}, "'stream' cannot be set there"),
        ({"body": {"eft": {}}}, "--setting"),
        ({"body": {"n": 2}}, "n=2"),
        ({"loads": (ClosedLoop(2), ClosedLoop(2))}, "concurrency 2 is asked for twice"),
        ({"baseline": "other"}, "--baseline 'other' is none of the targets: mock"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields: dict, problem: str) -> None:
    given = {"targets": tuple(targets([parse_setting("mock")])), "baseline": "mock"}
    given |= {"loads": (ClosedLoop(1),), "prompts": PROMPTS}
    with pytest.raises(LoadError, match=problem):
        LoadOptions(**(given | fields))


def test_limits_are_read_from_words() -> None:
    assert read_limits(["ttft_ms=500", "e2e_ms=2e3"]) == {"ttft_ms": 500.0, "e2e_ms": 2000.0}
    for word in ("ttft=500", "ttft_ms", "ttft_ms=-1", "ttft_ms=nan", "itl_ms=5"):
        with pytest.raises(LoadError, match="FIGURE=MILLISECONDS"):
            read_limits([word])


async def test_the_mock_answers_with_as_many_tokens_as_it_is_asked_for() -> None:
    reply = at_once({"messages": [{"content": "a b"}], "max_tokens": 2})
    assert [piece async for piece in reply.pieces][-2] == usage(7, 2)
