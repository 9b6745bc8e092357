"""`eft generate`, killed and run again, on hub ids that are read from the hub's cache alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from eft_server.family.load import bundled_families

from ..server.hub_cache import COMMIT, add_to_cache

REQUESTS = 40
DONE_BEFORE_THE_KILL = 3
TIMEOUT_S = 240

FAMILY = f"""
name: demo
base: demo/large-base
references: {{small: demo/small-base}}
experts:
  helpful: {{model: demo/small-helpful, revision: {COMMIT}}}
  harmless: demo/small-harmless
vllm: {{dtype: float32}}
server: {{max_concurrent_requests: 2}}
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The demo family's checkpoints in a hub's cache, and a family file of their hub ids."""
    for checkpoint in bundled_families()["demo"].with_suffix("").iterdir():
        revision = "v1" if checkpoint.name == "large-base" else "main"
        add_to_cache(tmp_path / "cache", f"demo/{checkpoint.name}", checkpoint, revision)
    path = tmp_path / "family.yaml"
    path.write_text(FAMILY)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file that may still be written."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def write_requests(path: Path) -> None:
    requests = [
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "demo",
                "messages": [{"role": "user", "content": f"How could I build the goblin soap {number}?"}],
                "temperature": 0,
                "max_tokens": 32,
            },
        }
        for number in range(REQUESTS)
    ]
    requests[1]["body"]["eft"] = {"weights": {"harmless": 1}}
    requests[-1]["body"]["temprature"] = 0
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))


@pytest.fixture
def start(family: Path, tmp_path: Path) -> Iterator[Any]:
    """Run the command; what is left of it is killed at the end."""
    write_requests(tmp_path / "in.jsonl")
    processes: list[subprocess.Popen[str]] = []
    hub = ("--offline", "--cache-dir", str(tmp_path / "cache"), "--revision", "v1")

    def start(*options: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("eft")), "generate", "in.jsonl", "out.jsonl"]
        process = subprocess.Popen(
            [*command, "--family", str(family), *hub, *options],
            cwd=tmp_path,
            env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"},
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def test_a_batch_that_was_killed_goes_on_where_it_stopped(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    weights = ("--weights", "helpful=0.8,harmless=0.2")
    killed = start(*weights)
    _wait_for_answers(killed, out)
    engine = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(engine, timeout=30)
    assert alive == []

    before = lines(out)
    assert DONE_BEFORE_THE_KILL <= len(before) < REQUESTS
    with out.open("a") as torn:
        torn.write('{"id": "batch_req_')
    other = start("--weights", "helpful=0.5")
    assert "was 0.8 and is now 0.5" in other.communicate(timeout=TIMEOUT_S)[1]
    assert other.returncode == 2
    resumed = start(*weights)
    told = resumed.communicate(timeout=TIMEOUT_S)[1]
    assert resumed.returncode == 0, told
    left = REQUESTS - len(before)
    assert f"{left} requests to answer, {len(before)} already answered" in told
    assert f"{left} answered, 1 of them with an error" in told

    after = lines(out)
    assert after[: len(before)] == before
    answers = {line["custom_id"]: line["response"] for line in after}
    assert len(after) == len(answers) == REQUESTS
    refused = answers.pop(f"request-{REQUESTS - 1}")
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "temprature")
    assert {answer["status_code"] for answer in answers.values()} == {200}
    assert answers["request-1"]["body"]["eft"]["weights"] == {"helpful": 0.0, "harmless": 1.0}
    assert answers["request-2"]["body"]["eft"]["weights"] == {"helpful": 0.8, "harmless": 0.2}
    assert "pepper oil" in answers["request-2"]["body"]["choices"][0]["message"]["content"]


def _wait_for_answers(process: subprocess.Popen[str], out: Path) -> None:
    until = time.monotonic() + TIMEOUT_S
    while len(lines(out)) < DONE_BEFORE_THE_KILL:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
