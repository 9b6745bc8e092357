"""Starting a server again: with a program in its place whose runs end as a script says. A real one: tests/e2e."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from eft_server import cli
from eft_server.api import supervise
from eft_server.errors import ConfigError
from eft_server.family.load import load_config

SUPERVISOR = """
import socket, sys
from eft_server.api import supervise
supervise._FIRST_DELAY_S = 0.2
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.exit(supervise.supervise(listener, [sys.executable, sys.argv[1], sys.argv[2]]))
"""

SERVER = """
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from eft_server.api.supervise import inherited, report_ready

listener, channel = inherited()
folder = Path(sys.argv[1])
runs = json.loads((folder / "runs").read_text())
number = len(list(folder.glob("began-*")))
(folder / f"began-{number}").write_text(str(os.getpid()))
does = runs[number]

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(number).encode())
        if self.path == "/die":
            self.wfile.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    def log_message(self, *arguments):
        pass

if isinstance(does, int):
    sys.exit(does)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if does == "waits":
    time.sleep(600)
server = HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = listener
report_ready(channel)
server.serve_forever()
"""


class Supervised:
    def __init__(self, folder: Path, runs: list[object]) -> None:
        (folder / "runs").write_text(json.dumps(runs))
        (folder / "server.py").write_text(SERVER)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(folder / "server.py"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def get(self, path: str = "/") -> httpx.Response:
        return httpx.get(self.url + path, timeout=20)

    def get_until(self, text: str, path: str = "/") -> list[httpx.Response]:
        answers, deadline = [self.get(path)], time.monotonic() + 30
        while answers[-1].text != text:
            assert time.monotonic() < deadline
            answers.append(self.get(path))
        return answers

    def pid(self, run: int) -> int:
        return int((self.folder / f"began-{run}").read_text())

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[list[Supervised]]:
    started: list[Supervised] = []
    yield started
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(one.process.pid).children(recursive=True):
                process.kill()
        one.process.kill()
        one.process.wait()


def start(supervised: list[Supervised], folder: Path, *runs: object) -> Supervised:
    supervised.append(Supervised(folder, list(runs)))
    return supervised[-1]


def test_a_server_that_dies_is_started_again_and_meanwhile_the_port_says_when_to_come_back(
    supervised: list[Supervised], tmp_path: Path
) -> None:
    one = start(supervised, tmp_path, "serves", 3, -9 % 256, "serves")
    first = one.get_until("0")
    assert one.get("/die").text == "0"
    meanwhile = one.get_until("3")
    one.process.terminate()
    status, said = one.end()
    assert status == 0
    for refused in [*first[:-1], *meanwhile[:-1]]:
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert int(refused.headers["retry-after"]) > 0
    assert len(meanwhile) > 1
    lines = said.splitlines()
    assert [line.split("starting it again in ")[1] for line in lines] == ["0.2 s", "0.4 s", "0.8 s"]
    assert [line.split(" after ")[0] for line in lines] == [
        "The server ended by SIGKILL",
        "The server ended with status 3",
        "The server ended with status 247",
    ]


def test_a_body_is_read_before_it_is_refused(supervised: list[Supervised], tmp_path: Path) -> None:
    one = start(supervised, tmp_path, "waits")
    answer = httpx.post(one.url, content=b"a" * 3_000_000, timeout=20)
    assert answer.status_code == 503
    one.process.terminate()
    assert one.end()[0] in (0, 128 + signal.SIGTERM)  # The server may not have begun to listen to signals.


def test_a_first_start_that_fails_is_not_repeated(supervised: list[Supervised], tmp_path: Path) -> None:
    one = start(supervised, tmp_path, 2, "serves")
    assert one.end() == (2, "")


def test_a_signal_ends_the_waiting_for_the_next_start(supervised: list[Supervised], tmp_path: Path) -> None:
    one = start(supervised, tmp_path, "serves", 1, 1, 1, 1)
    one.get_until("0", "/die")
    assert one.process.stderr is not None
    for line in one.process.stderr:
        if line.endswith("starting it again in 1.6 s\n"):
            break
    one.process.send_signal(signal.SIGINT)
    assert one.end() == (0, "")
    assert len(list(tmp_path.glob("began-*"))) == 4


def test_a_server_ends_when_its_supervisor_is_killed(supervised: list[Supervised], tmp_path: Path) -> None:
    one = start(supervised, tmp_path, "serves")
    one.get_until("0")
    server = psutil.Process(one.pid(0))
    one.process.kill()
    assert psutil.wait_procs([server], timeout=10)[1] == []


def test_a_server_whose_supervisor_was_killed_before_it_looked_ends(tmp_path: Path) -> None:
    supervisors, channel = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, channel:
        supervisors.close()
        (tmp_path / "server.py").write_text(SERVER)
        (tmp_path / "runs").write_text('["serves"]')
        descriptors = (listener.fileno(), channel.fileno())
        ended = subprocess.run(
            [sys.executable, str(tmp_path / "server.py"), str(tmp_path)],
            env=os.environ | {supervise.INHERITED: ",".join(map(str, descriptors))},
            pass_fds=descriptors,
            timeout=30,
            check=False,
        )
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.parametrize("value", ["", "yes", "1,2,3", "998,999"])
def test_a_variable_that_no_supervisor_has_set_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(supervise.INHERITED, value)
    with pytest.raises(ConfigError, match="only eft serve --supervise sets this variable"):
        supervise.inherited()


def test_a_supervised_server_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typer.py").write_text("raise SystemExit('from the working directory')")
    commands: list[list[str]] = []
    monkeypatch.setattr(supervise, "supervise", lambda _, command: commands.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["eft", "families", "--supervise"])
    cli._supervised(load_config("demo", ["server.port=0"]))
    ended = subprocess.run(commands[0], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
