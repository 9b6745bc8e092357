"""README.md and the pages in docs, run as written."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_server.family.load import load_config

from .conftest import Server, start_server, stop_server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SCRIPTS = [
    pytest.param(script, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, script in enumerate(blocks("bash", path.read_text()))
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    """What `make serve` starts, on another port."""
    server = start_server("demo")
    yield server
    assert stop_server(server) == 0


# What the server refuses has to fail the block: curl by itself is content with any answer.
PROLOGUE = 'curl() { command curl --fail-with-body "$@"; }\n'


def run(script: str, server: Server, folder: Path) -> str:
    """Run a shell block in an empty folder, with this environment's commands on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PROLOGUE + script.replace(ADDRESS, server.url)],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_block_that_the_server_refuses_fails(demo: Server, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not served"):
        run(f"curl {ADDRESS}/v1/models/nobody", demo, tmp_path)


REFUSED = '"helpful": 7'
"""What the block asks for that shows what a refusal looks like."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_blocks_run(script: str, demo: Server, tmp_path: Path) -> None:
    if REFUSED in script:
        with pytest.raises(AssertionError, match=r"eft\.weights\.helpful: 7 is out of bounds"):
            run(script, demo, tmp_path)
        return
    output = run(script, demo, tmp_path)
    assert output.strip() or ">" in script
    assert "Traceback" not in output


def test_the_request_gives_what_the_readme_says(demo: Server, tmp_path: Path) -> None:
    answer = json.loads(run(blocks("bash")[0], demo, tmp_path))
    shown = json.loads(blocks("json")[0])
    assert shown.keys() <= answer.keys()
    assert answer["eft"] == shown["eft"]
    assert answer["model"] == shown["model"]
    assert answer["choices"][0]["message"]["content"] == shown["choices"][0]["message"]["content"]


@pytest.mark.parametrize("page", ["README.md", "docs/batch.md"])
def test_python_blocks_run(page: str, demo: Server, tmp_path: Path) -> None:
    for block in blocks("python", (ROOT / page).read_text()):
        script = tmp_path / "snippet.py"
        script.write_text(block.replace(ADDRESS, demo.url))
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.strip().splitlines()) >= 3


def test_the_python_of_the_clients_page_runs(demo: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "client.md").read_text()
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks("python", page)).replace(ADDRESS, demo.url))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "eft.weights.helpful |" in done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/family-file.md"])
def test_family_files_are_valid(page: str, tmp_path: Path) -> None:
    for block in blocks("yaml", (ROOT / page).read_text()):
        (tmp_path / "mine.yaml").write_text(block)
        assert load_config(tmp_path / "mine.yaml").family.names[0] == "base"


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"serve", "test", "bench", "demo-family"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_evaluation_in_the_readme_is_the_one_that_was_measured() -> None:
    table = README.split("<!-- evaluation -->")[1].split("<!-- /evaluation -->")[0].strip().splitlines()
    measured = (ROOT / "docs" / "demo-evaluation.md").read_text().split("\n\n")[0].splitlines()
    assert len(table) > 2 and table[:2] == measured[:2]
    assert set(table) <= set(measured)


def test_the_performance_in_the_readme_is_the_one_that_was_measured() -> None:
    table = README.split("## Performance")[1].split("|---|")[1].split("## Layout")[0]
    numbers = re.findall(r" (\d+(?:\.\d+)?) \|", table)
    measured = (ROOT / "docs" / "performance.md").read_text().split("| generation |")[1].split("\n\n")[0]
    assert len(numbers) == 15
    assert all(re.search(rf"\| {re.escape(number)} [(|]", measured) for number in numbers)
