"""Whether an engine lives, seen at real processes that carry an engine's title."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from eft_server.api.serving import pulse as module
from eft_server.api.serving.pulse import Pulse

from .fake_engine import FakeEngine

PROGRAM = """
import time
from setproctitle import setproctitle
setproctitle("VLLM::Worker_TP0")
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def worker() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


async def until(pulse: Pulse, words: str | None) -> None:
    async with asyncio.timeout(10):
        while pulse.problem() != words:
            await asyncio.sleep(0.01)


async def test_a_process_that_is_stopped_goes_on_or_ends(
    engine: FakeEngine, worker: "subprocess.Popen[str]"
) -> None:
    pulse = Pulse(engine)
    assert pulse.problem() is None
    worker.send_signal(signal.SIGSTOP)
    await until(pulse, f"the engine's process {worker.pid} is stopped")
    worker.send_signal(signal.SIGCONT)
    await until(pulse, None)
    worker.send_signal(signal.SIGSTOP)
    pulse.kill()
    await until(pulse, f"the engine's process {worker.pid} has ended")
    worker.wait(timeout=10)
    assert pulse.problem() == f"the engine's process {worker.pid} has ended"


async def test_an_engine_that_has_stopped(engine: FakeEngine) -> None:
    pulse = Pulse(engine)
    engine.dead = True
    assert pulse.problem() == "the engine has stopped"


@pytest.fixture
def beating(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine was asked; it does not answer before `engine.answers` is set."""
    asked: list[str] = []
    engine.answers = asyncio.Event()  # type: ignore[attr-defined]

    async def collective_rpc(method: str) -> None:
        asked.append(method)
        await engine.answers.wait()  # type: ignore[attr-defined]

    monkeypatch.setattr(engine, "collective_rpc", collective_rpc, raising=False)
    monkeypatch.setattr(module, "_BEAT_S", 0.02)
    return asked


async def test_an_engine_that_does_not_answer_is_lost_after_the_time_that_a_step_may_take(
    engine: FakeEngine, beating: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = Pulse(engine)
    beat = asyncio.create_task(pulse.beat())
    async with asyncio.timeout(10):
        while not beating:
            await asyncio.sleep(0.01)
    assert pulse.problem() is None, "a step may take that long"
    monkeypatch.setattr(module.envs, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", 0)
    await asyncio.sleep(0.05)
    problem = pulse.problem()
    assert problem is not None
    assert problem.startswith("the engine has not answered for ")
    engine.answers.set()  # type: ignore[attr-defined]
    monkeypatch.setattr(module.envs, "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", 300)
    await until(pulse, None)
    assert set(beating) == {"check_health"}
    beat.cancel()


async def test_an_engine_that_has_just_given_something_is_not_asked(
    engine: FakeEngine, beating: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    pulse = Pulse(engine)
    pulse.heard()
    beat = asyncio.create_task(pulse.beat())
    await asyncio.sleep(0.2)
    assert beating == []
    beat.cancel()
