"""An engine in this process, for programs that need no server: `load("demo").chat("Hello!")`."""

import atexit
import logging
import math
import sys
import types
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eft_server.environment import LogLevel, log_vllm, use_hub
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config

if TYPE_CHECKING:
    from eft_client import EftClient
    from eft_server.engine.launcher.plan import EnginePlan
    from eft_server.engine.launcher.stages import Stages

__all__ = ["load"]

_URL = "http://in-process/v1"
"""What errors call the engine."""

_logger = logging.getLogger(__name__)


def load(  # noqa: PLR0913 (the options of `eft serve` that matter here)
    family: str | Path,
    *,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
) -> "EftClient":
    """Start an engine for a family in this process, and give a client of it.

    The client is the one of a server: its requests go through the same application, without a socket. As many as
    ``server.max_concurrent_requests`` are under way at once, and others wait. Closing the client stops the engine, and
    so does the end of the program.

    Args:
        family: A bundled family's name, or a family file.
        overrides: What replaces keys of the file, such as ``vllm.max_model_len=4096``.
        revision: The hub revision of the base; every other member keeps its own.
        offline: Read from the hub's cache alone.
        cache_dir: The hub's cache; None means HF_HUB_CACHE or HF_HOME/hub.
        quiet: Show nothing on stderr while the engine starts.

    Raises:
        ConfigError: The family file or an option is wrong.
        FamilyError: The checkpoints cannot be read, or are no family.
    """
    config = load_config(family, overrides, revision=revision)
    use_hub(offline=offline, cache_dir=None if cache_dir is None else Path(cache_dir))
    log_vllm(None, default=LogLevel.ERROR)
    from eft_server.engine.launcher.stages import Stages

    with Stages(quiet=quiet) as stages:
        stages.begin("importing vLLM and PyTorch")
        from eft_server.engine.launcher import fork_server

        fork_server.start()
        stages.begin("reading the members' configs and tokenizers")
        from eft_server.engine.launcher.plan import plan
        from eft_server.family.inspection import inspect_family

        report = inspect_family(config)
        for warning in report.warnings:
            _logger.warning("%s", warning)
        return open_client(config, plan(config, report), stages)


def open_client(config: ServerConfig, plan: "EnginePlan", stages: "Stages") -> "EftClient":
    """Start the engine that a plan describes, and give a client of it that stops it."""
    from eft_client import EftClient
    from eft_server.api.in_process import EngineTransport

    with _without_main_module():
        client = EftClient(
            _URL,
            api_key="",
            model=config.name,
            timeout_s=math.inf,
            # One more, for what takes no place: the list of models.
            max_connections=config.server.max_concurrent_requests + 1,
            transport=EngineTransport(config, plan, stages),
        )
    # Registered last, so it runs before multiprocessing would kill the engine at the end of the program.
    closing = partial(_close, weakref.ref(client))
    atexit.register(closing)
    weakref.finalize(client, atexit.unregister, closing).atexit = False
    return client


def _close(forgotten: "weakref.ref[EftClient]") -> None:
    client = forgotten()
    if client is not None:
        client.close()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep the engine's process from running the caller's script again, which multiprocessing's spawn would do."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
