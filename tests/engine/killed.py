"""What becomes of a program's processes when it is killed."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil


def started_and_left(
    program: str, script: Path, look: Callable[[psutil.Process], None] = lambda _: None
) -> tuple[Sequence[psutil.Process], Sequence[psutil.Process]]:
    """Run a program until it prints a line, and kill it: whom it had started by then, and who of them did not end.

    `look` sees each of them before.
    """
    script.write_text(program)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        started = psutil.Process(running.pid).children(recursive=True)
        for process in started:
            look(process)
        running.kill()
        running.wait()
        _, left = psutil.wait_procs(started, timeout=30)
        for process in left:
            process.kill()
    return started, left
