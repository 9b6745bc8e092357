"""The kernels of the blend, in processes of their own: one interprets them on the CPU, one compiles them for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .driver import STUB

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent


def run(*arguments: str, **variables: str) -> str:
    path = os.pathsep.join(filter(None, (str(STUB), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"} | variables
    ran = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    return ran.stdout


def test_the_kernels_compute_what_the_equation_says() -> None:
    cases = str(HERE / "blend_kernel_cases.py")
    options = (
        "--noconftest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "ignore::RuntimeWarning",
    )
    assert " passed" in run("-m", "pytest", *options, cases, TRITON_INTERPRET="1")


def test_the_arrays_of_members_graphs_are_those_of_their_own_positions() -> None:
    cases = str(HERE / "graph_input_cases.py")
    assert "6 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, TRITON_INTERPRET="1")


def test_the_kernels_compile_for_a_gpu_and_move_sixteen_bytes_at_a_time(tmp_path: Path) -> None:
    printed = run(str(HERE / "compiled_kernels.py"), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    found = [line.split() for line in printed.splitlines() if "_kernel" in line]
    assert {name for name, _, _ in found} == {
        "add_kernel",
        "finish_kernel",
        "nucleus_kernel",
        "filter_kernel",
        "score_kernel",
        "scored_kernel",
        "compare_kernel",
        "compared_kernel",
        "_fill_kernel",
        "_spread_kernel",
    }
    adding = [(int(loads), int(stores)) for name, loads, stores in found if name == "add_kernel"]
    assert len(adding) == 3
    assert all(loads and stores for loads, stores in adding)
