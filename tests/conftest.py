"""What holds for all tests: which of them share something that takes long to start, and which come first."""

import os
import signal
from collections.abc import Generator

import pytest

from .e2e.playground.browser import NO_BROWSER
from .leftovers import watch

if "PYTEST_XDIST_WORKER" in os.environ:  # The other workers have the other cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what runs behind it (`make test &`) with Ctrl-C ignored, and so would every program
# that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let nothing outlive the run; what a worker of pytest-xdist starts is marked as its controller's."""
    if not hasattr(config, "workerinput"):
        watch()


_SERVER = "the server of tests/e2e"
_OTHER_SERVER = "/test_vllm_serve.py"
_PLAYGROUND = "tests/e2e/playground/"
_LONGEST_FIRST = ("tests/engine/", "tests/e2e/", "tests/server/", "tests/clients/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist what has to run in one process, and begin with what takes longest."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if item.nodeid.startswith("tests/e2e/"):
            item.add_marker(pytest.mark.engine)
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in _LONGEST_FIRST])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Put the environment back after each test: vLLM's config changes it, for all programs that are started later."""
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in plain words that there is no browser, since a skipped test is only a letter."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any(NO_BROWSER in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(NO_BROWSER, yellow=True)


def _group(item: pytest.Item) -> str:
    """A running engine is shared by all tests that ask for it, other fixtures by those of their file."""
    module = item.nodeid.partition("::")[0]
    fixtures = getattr(item, "fixturenames", ())
    if module.startswith(_PLAYGROUND):
        return _PLAYGROUND
    if "running" in fixtures and "/engine/" in module:
        module = "tests/engine/running"
    elif "server" in fixtures and "/e2e/" in module and not module.endswith(_OTHER_SERVER):
        return _SERVER
    if "/engine/" not in module:
        return module
    params = getattr(item, "callspec", None)
    shared = [str(value) for name, value in params.params.items() if name in _SHARED] if params else []
    return "-".join([module, *shared])


_SHARED = frozenset({"running", "compiled", "spread", "ran"})
"""The fixtures of tests/engine whose parameters are engines."""
