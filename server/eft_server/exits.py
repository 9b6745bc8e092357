"""How the server's commands end: with one message for an error, and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

from eft_client import exits
from eft_client.exits import EXIT_WRONG_INPUT, fail
from eft_server.errors import EftError

__all__ = ["errors_in_words"]

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
