"""What a test run started ends with it, however it ends: a watcher outlives the run, and ends what is left.

Servers, engines and other programs that tests start are known by a variable of their environment, which children
inherit whatever else they do.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_VARIABLE = "EFT_TEST_RUN"
_watchers: list[subprocess.Popen[bytes]] = []
_ROUNDS = 5
"""What is ending may still start something."""


def watch() -> None:
    """Mark this process's future children, and have them ended when it is gone."""
    os.environ[_VARIABLE] = run = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != _VARIABLE}
    command = [sys.executable, __file__, run]
    # The pipe is this process's alone: it breaks when the process ends.
    _watchers.append(
        subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    )


def _end(run: str) -> None:
    sys.stdin.read()
    for _ in range(_ROUNDS):
        for process in _marked(run):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def _marked(run: str) -> Iterator[int]:
    mark = f"{_VARIABLE}={run}".encode()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


if __name__ == "__main__":
    _end(sys.argv[1])
