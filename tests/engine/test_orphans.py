"""What becomes of an engine's process when the program that started it is killed."""

import subprocess
import sys

import psutil
import pytest

PROGRAM = """
import multiprocessing, time
from eft_server.engine.orphans import end_with_parent

def engine():
    end_with_parent()
    print("up", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    end_with_parent()  # Nothing to watch here.
    multiprocessing.get_context("METHOD").Process(target=engine).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_engine_ends_when_its_program_is_killed(method, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("METHOD", method))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "up\n"
        started = psutil.Process(program.pid).children(recursive=True)
        program.kill()
        program.wait()
        _, alive = psutil.wait_procs(started, timeout=30)
        for process in alive:
            process.kill()
        assert alive == []
