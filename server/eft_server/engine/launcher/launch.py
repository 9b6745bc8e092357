"""Start the engine that a plan describes, and stop it."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from eft_server.engine.launcher import fork_server
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.shared_memory import refuse_small_shared_memory
from eft_server.engine.launcher.stages import Stages
from eft_server.engine.plugin import ARCHITECTURE
from eft_server.errors import ConfigError

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor


_ENGINE_ENDS_WITHIN_S = 10.0
"""Until then vLLM's processes clear up; then they are killed. vLLM's 5 s are too few where a machine is very busy."""

_LONGEST_FOLDER = 50
"""Limit for the folder's part of a socket path's 107 characters; vLLM's names and ours take the rest."""


@asynccontextmanager
async def open_engine(plan: EnginePlan, stages: Stages) -> AsyncIterator["AsyncLLM"]:
    """Start the engine, and stop it on the way out.

    Args:
        plan: How the engine is started.
        stages: Shows the progress of the start.

    Raises:
        ConfigError: There is no device or too little shared memory, or vLLM did not load this package's plugin.
    """
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    with _sockets() as sockets, environment({**plan.environment, **sockets}):
        stages.begin("loading the members")
        stages.listen()
        _prepare(plan)
        with _method_of_the_operator():
            # vLLM's default batch limits depend on the caller: use those of `vllm serve`.
            engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**plan.options), usage_context=UsageContext.OPENAI_API_SERVER
            )
        try:
            stages.show(f"  KV cache: {_kv_cache_in_words(engine.vllm_config)}")
            stages.begin("preparing the endpoints")
            end_with(engine.input_processor, plan)
            yield engine
        finally:
            engine.shutdown(_ENGINE_ENDS_WITHIN_S)


@contextmanager
def _sockets() -> Iterator[dict[str, str]]:
    """A temporary folder for the sockets between vLLM's processes, which vLLM does not remove."""
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="eft-", dir=usual if len(usual) <= _LONGEST_FOLDER else "/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield {"VLLM_RPC_BASE_PATH": folder}


def open_offline(plan: EnginePlan) -> "LLM":
    """Start the engine without a server, for scripts, tests and benchmarks."""
    from vllm import LLM

    with environment(plan.environment):
        _prepare(plan)
        with _method_of_the_operator():
            engine = LLM(**plan.options)
        end_with(engine.llm_engine.input_processor, plan)
        return engine


def _kv_cache_in_words(config: "VllmConfig") -> str:
    cache = config.cache_config
    blocks = cache.num_gpu_blocks or 0
    return f"{blocks * cache.block_size:,} tokens in {blocks:,} blocks"


def end_with(processor: "InputProcessor", plan: EnginePlan) -> None:
    """Let every member's end-of-turn token end an answer."""
    if plan.end_ids:
        processor.generation_config_fields["eos_token_id"] = list(plan.end_ids)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set yet, and unset them afterwards."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _prepare(plan: EnginePlan) -> None:
    _require_device()
    refuse_small_shared_memory(plan.options)
    _require_plugin()
    if plan.options.get("numa_bind"):
        fork_server.leave_to_vllm()


@contextmanager
def _method_of_the_operator() -> Iterator[None]:
    """Undo the start method of vLLM's CPU platform, which sets the variable that is meant for the operator."""
    name = "VLLM_WORKER_MULTIPROC_METHOD"
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _require_device() -> None:
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise ConfigError(
            "vLLM finds no device: its build for GPUs needs one with NVIDIA's driver (in a container, docker run "
            "--gpus all); without a GPU, install vLLM's CPU build (docs/deploy.md has an image for either)"
        )


def _require_plugin() -> None:
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        raise ConfigError(
            "vLLM did not load the plugin 'eft' (entry point group vllm.general_plugins): install the package with "
            "pip, and if VLLM_PLUGINS is set, add eft to it"
        )
