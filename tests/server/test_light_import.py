"""The light parts stay light: a client's machine has no torch."""

import subprocess
import sys

import pytest

HEAVY = ("fastapi", "huggingface_hub", "tokenizers", "torch", "transformers", "uvicorn", "vllm")


@pytest.mark.parametrize("module", ["", ".family.file", ".behaviour.resolve", ".errors", ".cli"])
def test_importing_it_loads_no_heavy_package(module):
    code = f"import sys, eft_server{module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
