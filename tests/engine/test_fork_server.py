"""Where an engine's processes come from: forked with all imported, in their parent's environment, ended with it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from eft_server.engine.launcher import openmp

from .killed import started_and_left

pytestmark = pytest.mark.engine

CHILDREN = """
import json, os, sys, time
from pathlib import Path

def facts():
    import torch
    torch.zeros(1 << 20).add_(1)
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # The one that listed them.
            continue
    return dict(
        imported="vllm.v1.engine.core" in sys.modules and "eft_server.engine.worker.composite" in sys.modules,
        parent=os.getppid(), group=os.getpgid(0),
        environment=dict(os.environ), descriptors=links, threads=torch.get_num_threads(),
        places=[sorted(os.sched_getaffinity(int(task))) for task in sorted(os.listdir("/proc/self/task"), key=int)],
    )

def child(path, known=None):
    Path(path).write_text(json.dumps(known or facts()))
    time.sleep(600)

def child_with_child(path):
    from eft_server.engine.launcher import fork_server
    from vllm.v1.executor import multiproc_executor
    known, inner = facts(), Path(path).with_suffix(".inner")
    os.environ["SET_BY"] = "the first"
    multiproc_executor.get_mp_context().Process(target=child, args=(str(inner),), daemon=True).start()
    while not inner.exists() or not inner.read_text():
        time.sleep(0.02)
    child(path, known)
"""
PROGRAM = """
import json, os, socket, sys, threading, time
from pathlib import Path
sys.path.insert(0, os.path.dirname(__file__))
from eft_server.engine.launcher import fork_server

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    os.environ.update(LEFT_OUT="1", SET_BY="nobody")
    PREPARE
    fork_server.start()
    import children
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.v1.engine import utils
    del os.environ["LEFT_OUT"]
    os.environ.update(SET_BY="the program", OMP_NUM_THREADS="2", GOMP_CPU_AFFINITY="PLACES")
    facts = Path(__file__).with_name("facts.json")
    utils.get_mp_context().Process(target=children.child_with_child, args=(str(facts),)).start()
    while not facts.exists() or not facts.read_text():
        time.sleep(0.02)
    own = dict(pid=os.getpid(), group=os.getpgid(0), listener=os.readlink(f"/proc/self/fd/{listener.fileno()}"))
    facts.with_suffix(".own").write_text(json.dumps(own))
    print("up", flush=True)
    time.sleep(600)
"""
CORES = sorted(os.sched_getaffinity(0))[:2]


@dataclass(frozen=True)
class Ran:
    """What a program, its child and the child's child say of themselves, and which of them outlived the program."""

    own: dict[str, Any]
    child: dict[str, Any]
    inner: dict[str, Any]
    servers: list[list[str]]
    left: list[psutil.Process]


@pytest.fixture(
    scope="module",
    params=["pass", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"],
    ids=["clean", "with threads"],
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A program that can be forked, and one that cannot."""
    folder = tmp_path_factory.mktemp("forked")
    (folder / "children.py").write_text(CHILDREN)
    script = PROGRAM.replace("PREPARE", request.param).replace("PLACES", " ".join(map(str, CORES)))
    commands: list[list[str]] = []
    _, left = started_and_left(
        script, folder / "program.py", lambda process: commands.append(process.cmdline())
    )
    facts = [json.loads((folder / name).read_text()) for name in ("facts.own", "facts.json", "facts.inner")]
    return Ran(*facts, commands, list(left))


def test_processes_begin_with_the_engine_imported_and_so_do_theirs(ran: Ran) -> None:
    assert ran.child["imported"] and ran.inner["imported"]
    assert ran.child["parent"] == ran.inner["parent"] != ran.own["pid"], "one server forks them all"


def test_a_program_that_can_be_forked_is_and_another_gets_an_interpreter(
    ran: Ran, request: pytest.FixtureRequest
) -> None:
    new_interpreters = [
        command for command in ran.servers if "multiprocessing.forkserver" in " ".join(command)
    ]
    assert bool(new_interpreters) == ("threads" in request.node.name)


def test_a_process_has_the_environment_of_the_one_that_started_it(ran: Ran) -> None:
    assert (ran.child["environment"]["SET_BY"], ran.inner["environment"]["SET_BY"]) == (
        "the program",
        "the first",
    )
    assert "LEFT_OUT" not in ran.child["environment"]


def test_what_the_program_had_open_is_not_open_in_its_processes(ran: Ran) -> None:
    assert ran.own["listener"].startswith("socket:")
    assert ran.own["listener"] not in (*ran.child["descriptors"], *ran.inner["descriptors"])


def test_a_terminals_interrupt_is_for_the_program_alone(ran: Ran) -> None:
    assert ran.own["group"] not in (ran.child["group"], ran.inner["group"])


def test_openmp_computes_where_the_environment_says(ran: Ran) -> None:
    assert ran.child["threads"] == ran.inner["threads"] == 2
    if len(CORES) == 2:
        assert ran.child["places"][0] == [CORES[0]]
        assert [CORES[1]] in ran.child["places"]


def test_all_of_them_end_with_a_program_that_is_killed(ran: Ran) -> None:
    assert ran.left == []


def test_threads_are_left_as_they_are_where_the_environment_has_not_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound: list[object] = []
    monkeypatch.setattr(openmp, "_bind", lambda *places: bound.append(places))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_PLACES", "{0,1}")
    openmp.read_environment(dict(os.environ))
    assert bound == []
    openmp.read_environment({"OMP_NUM_THREADS": "1"})
    assert bound == [(1, [{0, 1}])]


OWN = """
import atexit, json, os, signal, sys, tempfile
from pathlib import Path
sys.path.insert(0, os.path.dirname(__file__))
from eft_server.engine.launcher import fork_server

if __name__ == "__main__":
    atexit.register(print, "at the end")
    signal.signal(signal.SIGHUP, lambda *_: None)
    folder = tempfile.TemporaryDirectory()
    print("once")
    fork_server.start()
    import child
    receiver, sender = fork_server.process_context().Pipe(duplex=False)
    daemon = fork_server.process_context().Process(target=child.tell, args=(sender,), daemon=True)
    daemon.start()
    facts = receiver.recv()
    daemon.join()
    ended = receiver.recv()
    print(json.dumps([*facts, ended, daemon.exitcode, os.path.exists(folder.name)]))
"""
CHILD = """
import atexit, multiprocessing.forkserver, signal, weakref

class Thing: pass

thing = Thing()

def tell(sender):
    atexit.register(sender.send, "an end of its own")
    weakref.finalize(thing, print, "finalised")
    multiprocessing.forkserver.ensure_running()
    from vllm.model_executor.models import registry
    sender.send([signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, registry._run_in_subprocess(lambda: 6 * 7)])
"""


def test_what_is_the_programs_own_stays_so_and_a_process_ends_as_an_interpreter_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(OWN)
    (tmp_path / "child.py").write_text(CHILD)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, tmp_path / "program.py"]
    done = subprocess.run(command, env=buffered, capture_output=True, text=True, timeout=120, check=True)
    once, finalised, facts, end = done.stdout.splitlines()
    assert (once, finalised, end) == ("once", "finalised", "at the end")
    assert json.loads(facts) == [True, 42, "an end of its own", 0, True]


LEFT_TO_VLLM = """
from eft_server.engine.launcher import fork_server
fork_server.start()
print(fork_server.is_running(), fork_server.process_context().get_start_method())
"""


def test_the_operator_may_leave_processes_to_vllm() -> None:
    environment = os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    command = [sys.executable, "-c", LEFT_TO_VLLM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "spawn"]
