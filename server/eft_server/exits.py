"""How the server's commands end: with one message for an error, and an exit status."""

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from eft_client import exits
from eft_client.exits import EXIT_FAILED, EXIT_WRONG_INPUT, fail
from eft_server.errors import EftError

__all__ = ["ended_quickly", "errors_in_words"]

_ENGINE_PACKAGES = frozenset({"fastapi", "huggingface_hub", "torch", "transformers", "uvicorn", "vllm"})
_INSTALL_ADVICE = (
    "this command needs an engine: pip install 'eft-server[cuda]' for NVIDIA GPUs, 'eft-server[cpu]' for CPUs"
)


@contextmanager
def errors_in_words(*others: type[Exception]) -> Iterator[None]:
    """As for the client's commands, for the server's errors too, and where there is no engine how to install one."""
    try:
        with exits.errors_in_words(EftError, *others):
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _ENGINE_PACKAGES:
            raise
        raise fail(f"{_INSTALL_ADVICE} ({error})", EXIT_WRONG_INPUT) from error


@contextmanager
def ended_quickly() -> Iterator[None]:
    """End the program where the block exits, after its exit handlers, without taking the interpreter apart.

    Once vLLM has been imported, that takes seconds and does nothing: its modules are many and large.
    """
    try:
        yield
    except SystemExit as end:
        if "vllm" not in sys.modules or threading.current_thread() is not threading.main_thread():
            raise
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else EXIT_FAILED)
