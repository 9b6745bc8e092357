"""What becomes of an engine's process when the program that started it is killed."""

import pytest

from .killed import started_and_left

pytestmark = pytest.mark.engine

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
    _, left = started_and_left(PROGRAM.replace("METHOD", method), tmp_path / "program.py")
    assert left == []
