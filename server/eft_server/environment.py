"""The environment variables to set before vLLM and the hub's client are imported, which read them only once."""

import os
import sys
from enum import StrEnum
from pathlib import Path

from eft_server.engine.launcher.vllm_log import SHORT, quieten_imports
from eft_server.errors import ConfigError

__all__ = ["LogLevel", "log_vllm", "use_hub"]


class LogLevel(StrEnum):
    """The lowest level of vLLM's log that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_vllm(level: LogLevel | None, *, default: LogLevel = LogLevel.WARNING) -> None:
    """Show vLLM's log from a level upwards, on stderr, where it stays out of a program's output.

    Args:
        level: The user's choice; None means VLLM_LOGGING_LEVEL in the environment, or else the default.
        default: The level when neither is set.
    """
    if level is not None:
        os.environ["VLLM_LOGGING_LEVEL"] = level.upper()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", default.upper())
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if os.environ["VLLM_LOGGING_LEVEL"] in ("DEBUG", "INFO"):
        os.environ.pop(SHORT, None)
    else:
        os.environ[SHORT] = "1"
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # Silences a report of memory binding on CPUs.
        quieten_imports()


def use_hub(*, offline: bool = False, cache_dir: Path | None = None) -> None:
    """Choose the hub's cache, and whether the hub may be contacted.

    This applies to our process and the engine's, so configs, tokenizers and weights come from one place.

    Args:
        offline: Read only from the cache.
        cache_dir: The cache, as `hf download --cache-dir` fills it; None means HF_HUB_CACHE or HF_HOME/hub.

    Raises:
        ConfigError: The cache is not a directory, or the hub's client is already in use with other settings.
    """
    if offline:
        _set("HF_HUB_OFFLINE", "1", in_use=True)
    if cache_dir is not None:
        path = cache_dir.expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--cache-dir {cache_dir}: is not a directory")
        _set("HF_HUB_CACHE", str(path), in_use=str(path))


def _set(variable: str, value: str, *, in_use: object) -> None:
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and getattr(constants, variable) != in_use:
        raise ConfigError(
            f"huggingface_hub is already imported with {variable}={getattr(constants, variable)}: "
            f"set {variable}={value} in the environment before the program starts"
        )
    os.environ[variable] = value
