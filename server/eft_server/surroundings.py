"""What has to be in the environment before vLLM and the hub's client are imported, which read it once."""

import os
import sys
from pathlib import Path

from eft_server.errors import ConfigError

__all__ = ["quieten_vllm", "use_hub"]


def quieten_vllm(level: str = "ERROR") -> None:
    """Keep vLLM's log below a level, and out of a program's own output; what the user has set stays."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", level)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def use_hub(*, offline: bool = False, cache_dir: Path | None = None) -> None:
    """Choose the hub's cache, and whether the hub is asked at all.

    Set for this process and the engine's alike, so configs, tokenizers and weights come from one place.

    Args:
        offline: Read from the cache alone.
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
