"""What vLLM's log leaves out at its usual level, and at which levels it is whole."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

PROGRAM = """
from eft_server.environment import LogLevel, log_vllm
log_vllm(LogLevel(LEVEL))
from vllm.logger import _configure_vllm_root_logger, init_logger
from eft_server.engine.launcher.vllm_log import hide_expected_warnings
if not LATE:
    hide_expected_warnings()
_configure_vllm_root_logger()
hide_expected_warnings()
logger = init_logger("vllm.some.module")
logger.warning("Using custom scheduler class %s", "ours")
logger.warning_once("OMP_NUM_THREADS=%s is set; leaving Torch threads at %d for serving.", "2", 2)
logger.warning("The KV cache is small")
logger.error("Something broke")
"""


@pytest.mark.parametrize("late", [False, True], ids=["set up here", "set up before"])
@pytest.mark.parametrize(
    ("level", "expected", "warnings", "errors"),
    [("warning", 0, 1, 1), ("error", 0, 0, 1), ("info", 2, 1, 1)],
)
def test_what_is_expected_is_left_out_and_nothing_else(
    level: str, expected: int, warnings: int, errors: int, late: bool
) -> None:
    program = PROGRAM.replace("LEVEL", repr(level)).replace("LATE", str(late))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("custom scheduler") + done.stderr.count("OMP_NUM_THREADS") == expected
    assert done.stderr.count("The KV cache is small") == warnings
    assert done.stderr.count("Something broke") == errors
    assert done.stdout == ""
