"""`eft bench load` as it is typed, against a server in a thread of its own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from eft_client.cli import add_commands

from .mock_server import MockServer, Reply, chunk, event, refusing

WIDE = {"COLUMNS": "200"}
PROGRAM = "import typer, eft_client.cli as c; app = typer.Typer(); c.add_commands(app); app()"

app = typer.Typer()
add_commands(app)


class Served:
    """A mock server in a thread of its own."""

    def __init__(self) -> None:
        self.mock = MockServer()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with self.mock:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> "Served":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", "load", *arguments], env=WIDE)


def only_folder(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def test_a_run_leaves_tables_time_stamps_a_summary_and_a_page(served: Served, tmp_path: Path) -> None:
    url = served.mock.url
    done = run(
        *("--setting", f"base=mock@{url}", "--setting", f"steered=mock@{url} helpful=0.5"),
        *("--mix", "traffic=1*base 1*steered", "--concurrency", "2", "--rate", "200", "--requests", "6"),
        *("--repeats", "2", "--warm-up", "1", "--input-tokens", "20", "--output-tokens", "4"),
        *("--goodput", "ttft_ms=10000", "--output", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    assert "× base" in done.output
    told = [line.split("] ", 1)[1] for line in done.stderr.splitlines()]
    assert told[:3] == [
        "rounds: 0 of 12",
        "rounds: 0 of 12 (base, warm-up)",
        "rounds: 0 of 12 (steered, warm-up)",
    ]
    assert "rounds: 2 of 12 (traffic, concurrency 2, repeat 1 of 2)" in told
    assert told[-1].startswith("rounds: 12 of 12 (") and told[-1].endswith(", 6/6 requests)")
    folder = only_folder(tmp_path)
    assert re.fullmatch(r"load-\d{8}T\d{6}", folder.name)
    summary = json.loads((folder / "summary.json").read_text())
    assert {(one["contestant"], one["load"]) for one in summary["outcomes"]} == {
        (name, load)
        for name in ("base", "steered", "traffic")
        for load in ("concurrency 2", "200 requests/s")
    }
    assert all(one["figures"]["completed"]["median"] == 6 for one in summary["outcomes"])
    assert len((folder / "raw.jsonl").read_text().splitlines()) == 1 + 3 * (1 + 2 * 2 * 6)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "steered" in page


def test_a_report_is_made_again_from_its_time_stamps_alone(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["eft", "bench", "load", "--output", "not UTF-8: \udcff"])
    url = served.mock.url
    first = run(
        "--setting",
        f"a=mock@{url}",
        "--setting",
        f"b=mock@{url}",
        "--requests",
        "3",
        "--output",
        str(tmp_path),
    )
    assert first.exit_code == 0, first.output
    folder = only_folder(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    asked = len(served.mock.bodies)
    again = run("--from", str(folder / "raw.jsonl"))
    assert again.exit_code == 0, again.output
    remade = json.loads((folder / "summary.json").read_text())
    for before, after in zip(summary["outcomes"], remade["outcomes"], strict=True):
        assert after["figures"]["completed"] == before["figures"]["completed"]
        assert after["figures"]["e2e_ms_p50"]["median"] == pytest.approx(
            before["figures"]["e2e_ms_p50"]["median"], abs=0.01
        )
    assert (
        run("--from", str(folder / "raw.jsonl"), "--baseline", "b", "--goodput", "e2e_ms=1e6").exit_code == 0
    )
    other = json.loads((folder / "summary.json").read_text())
    assert other["run"]["baseline"] == "b"
    assert other["outcomes"][0]["figures"]["goodput_per_s"]["median"] > 0
    assert len(served.mock.bodies) == asked


def test_a_run_in_which_every_request_fails_says_so_and_exits_with_1(served: Served, tmp_path: Path) -> None:
    served.mock.script = refusing(500, "broken")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n')
    usual = ("--url", served.mock.url, "--setting", "mock", "--output", str(tmp_path / "out"))
    done = run(*usual, "--warm-up", "0", "--requests", "2", "--prompts", str(prompts))
    assert done.exit_code == 1
    assert "HTTP 500" in done.output
    refused = run(*usual, "--prompts", str(prompts))
    assert refused.exit_code == 1
    assert "mock: HTTP 500" in refused.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--body", "{"], "--body: no JSON"),
        (["--body", "[]"], "expected an object"),
        (["--body", '{"top_k": 1, "top_k": 2}'], "--body: 'top_k' is named twice"),
        (["--body", '{"top_p": 1e400}'], "--body: 1e400 is not a finite number"),
        (["--body", '{"stream": false}'], "'stream'"),
        (["--setting", "=x"], "expected NAME=MODEL"),
        (["--goodput", "ttft=5"], "FIGURE=MILLISECONDS"),
        (["--goodput", "ttft_ms=5", "--goodput", "ttft_ms=6"], "ttft_ms is named twice"),
        (["--prompts", "missing.jsonl"], "missing.jsonl"),
        (["--arrivals", "missing.txt"], "missing.txt"),
        (["--distinct"], "--distinct: no effect here: it is for --prompts FILE"),
        (["--prompts", "x.jsonl", "--input-tokens", "9"], "--input-tokens: no effect here"),
        (["--requests", "5", "--duration", "3"], "not both"),
        (["--concurrency", "0"], "concurrency"),
        (["--temperature", "inf"], "--temperature inf: expected a finite number from 0"),
        (["--temperature", "nan"], "temperature"),
        (["--rate", "nan"], "rate"),
        (["--duration", "nan"], "duration"),
        (["--rate", "90000", "--duration", "80000"], "more than 1,000,000 requests a round"),
    ],
)
def test_wrong_input_is_told_in_a_line_and_exits_with_2(
    arguments: list[str], problem: str, tmp_path: Path
) -> None:
    done = run(*arguments, "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert problem in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:99999/v1", "http://a..b/v1", f"http://{'x' * 70}.example/v1", "http://[::1/v1"],
)
def test_a_url_that_is_none_is_told_in_a_line_and_leaves_no_folder(url: str, tmp_path: Path) -> None:
    done = run("--setting", f"mock@{url}", "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "mock: " in done.output
    assert "Traceback" not in done.output
    assert list((tmp_path / "out").iterdir()) == []


def test_a_key_that_no_header_can_hold_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFT_API_KEY", "ключ")
    done = run("--setting", "mock", "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "the API key has characters" in done.output
    assert "ключ" not in done.output


def test_a_report_that_is_made_again_takes_no_option_of_a_new_run(tmp_path: Path) -> None:
    done = run("--from", str(tmp_path / "raw.jsonl"), "--setting", "mock", "--warm-up", "1")
    assert done.exit_code == 2
    assert "--setting, --warm-up: no effect here" in done.output


def test_time_stamps_that_are_not_there_are_named(tmp_path: Path) -> None:
    done = run("--from", str(tmp_path / "missing.jsonl"))
    assert done.exit_code == 2
    assert "missing.jsonl" in done.output


def test_neither_keys_nor_passwords_get_into_the_files(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFT_API_KEY", "sesame")
    url = served.mock.url.replace("//", "//user:sesame@")
    monkeypatch.setattr(sys, "argv", ["eft", "bench", "load", "--url", url])
    assert run("--url", url, "--setting", "mock", "--requests", "1", "--output", str(tmp_path)).exit_code == 0
    for file in only_folder(tmp_path).iterdir():
        assert "sesame" not in file.read_text()


def test_ctrl_c_reports_what_was_measured(served: Served, tmp_path: Path) -> None:
    held = threading.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield chunk("a")
        if len(served.mock.bodies) > 2:
            held.set()
            await asyncio.Event().wait()
        yield chunk("b", "stop")
        yield event(b"[DONE]")

    served.mock.script = lambda body: Reply(pieces())
    command = [sys.executable, "-c", PROGRAM, "bench", "load", "--url", served.mock.url, "--setting", "mock"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    command += [
        "--concurrency",
        "1",
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--warm-up",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | WIDE
    )
    if not held.wait(60):
        process.kill()
        pytest.fail(process.communicate()[0])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    summary = json.loads((only_folder(tmp_path / "out") / "summary.json").read_text())
    figures = summary["outcomes"][0]["figures"]
    assert figures["completed"]["median"] == 1
    assert figures["interrupted"]["median"] == 1
    assert figures["failed"]["median"] == 0
    assert "Traceback" not in output
