"""A batch through the real application over the fake engine."""

import json
import os
import signal
from contextlib import asynccontextmanager

import pytest

from eft_client import progress
from eft_server.api.edge.signals import STOP_SIGNALS
from eft_server.api.in_process import InProcess
from eft_server.batch.requests import Defaults
from eft_server.batch.run import Batch, EngineStoppedError, answer_all, run
from eft_server.engine.launcher.stages import Stages
from eft_server.errors import BatchError

from ..api.served import family
from .conftest import a_line


@pytest.fixture
def opened(write_requests, tmp_path):
    """Open a batch of these lines, with out.jsonl as its output."""

    def opened(*lines, defaults=Defaults("demo")):  # noqa: B008
        return Batch.opened(family(), (write_requests(*lines), tmp_path / "out.jsonl"), defaults)

    return opened


@pytest.fixture
def written(tmp_path):
    """The responses in out.jsonl by custom_id."""

    def written():
        lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        return {line["custom_id"]: line["response"] for line in lines}

    return written


async def test_requests_are_answered_as_the_server_would(opened, written, server, engine):
    own = {"eft": {"weights": {"harmless": 1}}}
    text = {"url": "/v1/completions", "body": {"prompt": "Hello", "max_tokens": 4}}
    response = {"url": "/v1/responses", "body": {"input": "Hello", "max_output_tokens": 4}}
    item = {"prompt": "Hello", "completion": " world!"}
    scores = {"url": "/v1/eft/score", "body": {"items": [item]}}
    named = {"model": "demo:helpful=0.250"}
    batch = opened(
        a_line("chat"), a_line("own", **own), a_line("named", **named), a_line("text") | text,
        a_line("response") | response, a_line("scores") | scores,
        defaults=Defaults("demo", None, {"weights": {"helpful": 0.5}}),
    )  # fmt: skip
    with batch.answers:
        await answer_all(batch, server, 2)
    responses = written()
    assert {name: r["status_code"] for name, r in responses.items()} == dict.fromkeys(responses, 200)
    assert responses["chat"]["body"]["choices"][0]["message"]["content"]
    assert responses["chat"]["body"]["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.0}
    assert responses["own"]["body"]["eft"]["weights"] == {"helpful": 0.0, "harmless": 1.0}
    assert responses["named"]["body"]["model"] == "demo:helpful=0.25"
    assert responses["named"]["body"]["eft"]["weights"] == {"helpful": 0.25, "harmless": 0.0}
    assert responses["text"]["body"]["object"] == "text_completion"
    assert responses["response"]["body"]["object"] == "response"
    assert responses["response"]["body"]["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.0}
    assert responses["scores"]["body"]["object"] == "eft.score"
    assert responses["scores"]["body"]["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.0}
    assert (batch.written, batch.refused, batch.left) == (6, 0, 0)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"temprature": 1}, 400, "temprature"),
        ({"eft": {"weights": {"helpful": 7}}}, 400, "eft.weights.helpful"),
        ({"model": "gpt-4"}, 404, "model"),
        ({"stream": True}, 400, "stream"),
        ({"user": "x" * 30_000}, 413, None),
    ],
)
async def test_a_request_that_is_refused_gets_its_line_and_stops_nothing(
    opened, written, server, body, status, param
):
    batch = opened(a_line("bad", **body), a_line("good"))
    with batch.answers:
        await answer_all(batch, server, 1)
    responses = written()
    assert responses["bad"]["status_code"] == status
    assert responses["bad"]["body"]["error"]["param"] == param
    assert responses["good"]["status_code"] == 200
    assert (batch.written, batch.refused) == (2, 1)


async def test_what_has_an_answer_is_skipped(opened, written, server, engine):
    lines = [a_line(str(number)) for number in range(5)]
    batch = opened(*lines[:2])
    with batch.answers:
        await answer_all(batch, server, 2)
    before = written()
    batch = opened(*lines)
    assert (batch.total, batch.skipped, batch.left) == (5, 2, 3)
    with batch.answers:
        await answer_all(batch, server, 2)
    assert len(engine.asked) == 5
    assert written() == before | {name: written()[name] for name in "234"}


async def test_lines_are_read_as_places_become_free(opened, server, engine, monkeypatch):
    batch = opened(*(a_line(str(number)) for number in range(20)))
    read = []
    pending = batch.pending()
    monkeypatch.setattr(batch, "pending", lambda: (read.append(r) or r for r in pending))
    ahead = []
    write = batch.answers.write
    monkeypatch.setattr(
        batch.answers, "write", lambda *line: (ahead.append(len(read) - len(ahead)), write(*line))
    )
    with batch.answers:
        await answer_all(batch, server, 3)
    assert len(read) == 20
    assert max(ahead) <= 3


async def test_an_engine_that_stops_leaves_its_requests_for_another_time(opened, written, server, engine):
    batch = opened(a_line("a"), a_line("b"))
    engine.dead = True
    with batch.answers, pytest.raises(EngineStoppedError):
        await answer_all(batch, server, 2)
    assert written() == {}
    assert batch.left == 2


async def test_a_request_that_fails_in_the_engine_gets_its_line(opened, written, server, engine):
    engine.fail_at = 2
    batch = opened(a_line("a"))
    with batch.answers:
        await answer_all(batch, server, 1)
    assert written()["a"]["status_code"] == 500


def test_the_input_is_not_written_over(write_requests):
    path = write_requests(a_line("a"))
    with pytest.raises(BatchError, match="is the input"):
        Batch.opened(family(), (path, path), Defaults("demo"))


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    with progress.Progress() as meter:
        advance = meter.begin("answers", 10, done=4, unit="requests")
        advance()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        advance()
        assert capsys.readouterr().err.count("\n") == 1
    line = capsys.readouterr().err
    assert "6/10" in line and "requests/s" in line and "\r" not in line


@pytest.fixture
def signals():
    """Put the handlers of stop signals back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_a_batch_with_every_answer_until_then_written(
    opened, written, engine, monkeypatch, signals, number
):
    stopped = []

    @asynccontextmanager
    async def open_in_process(config, plan, stages):
        try:
            yield InProcess(engine, config)
        finally:
            stopped.append(True)

    monkeypatch.setattr("eft_server.batch.run.open_in_process", open_in_process)
    engine.pause_s = 0.01
    batch = opened(*(a_line(str(index)) for index in range(9)))
    write = batch.answers.write
    monkeypatch.setattr(batch.answers, "write", lambda *line: (write(*line), os.kill(os.getpid(), number)))
    with batch.answers, pytest.raises(KeyboardInterrupt):
        run(batch, family(max_concurrent_requests=1), None, Stages(quiet=True))
    assert stopped == [True]
    assert 1 <= len(written()) == batch.written < 9
