"""The benchmarks run to their end, on a small family, and leave nobody behind when they are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .adapters import write_adapter
from .checkpoints import write_checkpoint
from .killed import started_and_left

pytestmark = pytest.mark.engine

FAMILY = """
name: small
base: ./base
references: {ref: ./ref}
experts: {a: ./a}
vllm: {dtype: float32, max_model_len: 128, max_num_seqs: 4, block_size: 32, kv_cache_memory_bytes: 16777216}
"""
ADAPTED = {"q_proj": 4, "o_proj": 4, "up_proj": 4, "down_proj": 4}
TARGET = """
import multiprocessing, sys, threading, time
from eft_server.bench.targets import Target, Drafts, Job

class WithProcess:
    def __init__(self):
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
    def drafts(self):
        return Drafts()
    def generate(self, job):
        if job.tokens == 0:
            raise ValueError("no token to generate")
        time.sleep(2)

if __name__ == "__main__":
    target = Target("sleeper", WithProcess)
    target.wait_until_ready()
"""
KILLED = f"""{TARGET}
    if BUSY:
        threading.Thread(target=target.time, args=(Job([[1]], 1),)).start()
        time.sleep(0.5)
    print("up", flush=True)
    time.sleep(600)
"""
FAILING = f"""{TARGET}
    target.time(Job([[1]], 0))
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for seed, name in enumerate(("base", "ref", "a")):
        write_checkpoint(folder / name, seed)
    path = folder / "family.yaml"
    path.write_text(FAMILY)
    return path


def bench(module: str, *arguments: str | Path, status: int = 0) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    wide = os.environ | {"COLUMNS": "200", "VLLM_LOGGING_LEVEL": "ERROR"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=500, env=wide, cwd=root
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_everybody_is_measured_generating_and_reading(family: Path, tmp_path: Path) -> None:
    sizes = "--batch 2 --rounds 2 --tokens 8 --prompt 9 --prefill 16 --rest 0 --drafted 2 --weights a=0.5"
    printed = bench("eft_server.bench", family, *sizes.split(), "--output", tmp_path)
    (path,) = tmp_path.glob("small-*.json")
    found = json.loads(path.read_text())
    names = ["base", "ref", "a", "composite", "composite, a drafts 2", "transformers loop"]
    names += ["composite, expert filter", "composite, base filter", "composite, own prompts"]
    titles = [(result["title"], result["reading"]) for result in found["results"]]
    assert titles == [("batch 2", False), ("batch 2, a=0.5", False), ("batch 2", True)]
    for result in found["results"]:
        assert list(result["tokens_per_s"]) == names
        assert all(len(rates) == 2 and min(rates) > 0 for rates in result["tokens_per_s"].values())
        assert len(result["bound_tokens_per_s"]) == 2
    assert found["results"][0]["drafts"]["composite, a drafts 2"]["drafted"] > 0
    for row in (
        "composite / bound",
        "composite / loop",
        "a drafts 2 / composite",
        "a drafts 2: acceptance rate",
    ):
        assert row in printed
    assert "small: tokens generated per second" in printed
    assert "small: tokens read per second" in printed


def test_requests_are_held_against_the_members_that_they_need(family: Path) -> None:
    sizes = "--batch 2 --rounds 1 --tokens 8 --prompt 9 --rest 0"
    printed = bench("eft_server.bench.needed", family, *sizes.split())
    asked = ["base alone, 1", "base alone, 2", "ref alone, 2", "a alone, 2", "a up-scaled, 2"]
    for title in (*asked, "all of these, 2"):
        assert f"{title} at once" in printed


@pytest.mark.full
def test_the_check_for_gpus_runs_to_its_end_without_one(family: Path, tmp_path: Path) -> None:
    sizes = "--batch 1 --batch 2 --rounds 1 --tokens 8 --prompt 9 --prefill 16"
    bench("eft_server.bench.gpu_check", family, "--exact", family, *sizes.split(), "--output", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    names = ["base", "ref", "a", "composite", "composite, drafting"]
    assert list(found["engines"]) == names
    assert [result["title"] for result in found["results"]] == [
        "decode, batch 1",
        "decode, batch 2",
        "read 1 × 16",
    ]
    for result in found["results"]:
        assert list(result["tokens_per_s"]) == names
        assert all(min(rates) > 0 for rates in result["tokens_per_s"].values())
    for dtype in ("float32", "bfloat16"):
        assert (tmp_path / f"exact-{dtype}.json").exists()


def test_the_engine_is_held_against_transformers(family: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "exact.json"
    printed = bench(
        "eft_server.bench.exactness", family, "--requests", "6", "--tokens", "4", "--output", numbers
    )
    assert "within the tolerance" in printed
    (found,) = json.loads(numbers.read_text())
    for title in ("generated", "from the prefix cache", "prompts"):
        assert found[title]["compared"] > 0
        assert found[title]["worse_tokens"] == 0
    assert found["cached_tokens"] > 0


@pytest.mark.parametrize(("left_out", "status"), [("nobody", 0), ("b", 1)])
def test_in_bfloat16_an_adapter_that_is_left_out_is_noticed(
    left_out: str, status: int, tmp_path: Path
) -> None:
    """It is worth less to any log-probability than bfloat16 may cost one of them."""
    write_checkpoint(tmp_path / "base", 0, spread=0.1)
    write_checkpoint(tmp_path / "ref", 1, "qwen2", spread=0.1, tie_word_embeddings=True)
    for seed, name in enumerate("ab", start=2):
        write_adapter(tmp_path / name, tmp_path / "ref", seed, ADAPTED, spread=0.035)
    adapters = "{a: {adapter: ./a}, b: {adapter: ./b}}"
    path, numbers = tmp_path / "family.yaml", tmp_path / "exact.json"
    path.write_text(FAMILY.replace("{a: ./a}", adapters).replace("float32", "bfloat16"))
    options = ("--requests", "12", "--tokens", "4", "--output", numbers)
    printed = bench("tests.engine.exact", left_out, path, *options, status=status)
    assert ("within the tolerance of 2 times" in printed) == (status == 0)
    (found,) = json.loads(numbers.read_text())
    assert found["prompts"]["largest"] < 0.25
    assert (found["prompts"]["noises"] > 4) == (left_out == "b")


@pytest.mark.parametrize("busy", [False, True])
def test_who_is_measured_ends_with_a_benchmark_that_is_killed(busy: bool, tmp_path: Path) -> None:
    started, left = started_and_left(KILLED.replace("BUSY", str(busy)), tmp_path / "program.py")
    assert len(started) >= 2
    assert left == []


def test_a_benchmark_ends_when_one_who_is_measured_fails(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(FAILING)
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ValueError: no token to generate" in done.stderr
    assert "RuntimeError: sleeper died: its output is above" in done.stderr
