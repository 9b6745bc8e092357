"""What becomes of an engine's process when the program that started it is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .killed import started_and_left

pytestmark = pytest.mark.engine

PROGRAM = """
import multiprocessing, time
from eft_server.engine.end_with_parent import end_with_parent

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
    _, left = started_and_left(PROGRAM.replace("METHOD", method), tmp_path / "program.py")
    assert left == []


TEST = """
import subprocess, sys
from pathlib import Path

def test_that_starts_something():
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path("started").write_text(str(program.pid))
    program.wait()
"""

PLUGIN = """
from leftovers import watch

def pytest_configure(config):
    hasattr(config, "workerinput") or watch()
"""


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "with xdist"])
def test_a_test_run_that_is_cut_off_leaves_nothing_behind(options, tmp_path):
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text(PLUGIN)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}) as run:
        while not (started := tmp_path / "started").exists() or not started.read_text():
            assert run.poll() is None
            time.sleep(0.05)
        program = psutil.Process(int(started.read_text()))
        run.kill()
    assert psutil.wait_procs([program], timeout=20)[1] == []


def test_engines_of_tests_end_with_them(family, tmp_path):
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import driver

if __name__ == "__main__":
    engine = driver.Engine(Path({str(family)!r}))
    print("up", flush=True)
    time.sleep(600)
"""
    started, left = started_and_left(program, tmp_path / "program.py")
    assert len(started) >= 2
    assert left == []
