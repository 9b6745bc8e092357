"""The client stays light, and never imports the server."""

import subprocess
import sys

import pytest

HEAVY = ("eft_server", "jinja2", "matplotlib", "numpy", "openai", "regex", "sentence_transformers", "torch")


@pytest.mark.parametrize("module", ["eft_client", "eft_client.cli", "eft_client.chat.run"])
def test_importing_it_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
