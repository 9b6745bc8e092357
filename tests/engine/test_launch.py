"""What the server's engine is started with, by vLLM's own account of its defaults."""

from types import SimpleNamespace
from typing import Any

import pytest
import vllm.platforms
from vllm import AsyncEngineArgs
from vllm.engine import arg_utils
from vllm.platforms.interface import UnspecifiedPlatform
from vllm.v1.engine.async_llm import AsyncLLM

from eft_server.engine.launcher.launch import open_engine
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.errors import ConfigError

pytestmark = pytest.mark.engine

H100 = SimpleNamespace(
    get_device_total_memory=lambda: 80 << 30,
    get_device_name=lambda: "NVIDIA H100 80GB HBM3",
    is_tpu=lambda: False,
    is_cpu=lambda: False,
)


class StoppedError(Exception):
    """The engine would be started now."""


async def defaults_of_the_servers_engine(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many tokens and how many requests a step takes, where nobody says so."""
    given: dict[str, Any] = {}

    def start(_args: AsyncEngineArgs, **options: Any) -> AsyncLLM:
        given.update(options)
        raise StoppedError

    monkeypatch.setattr(AsyncLLM, "from_engine_args", start)
    with pytest.raises(StoppedError):
        async with open_engine(EnginePlan({"model": "none"}, {}), Stages(quiet=True)):
            pass
    asked = SimpleNamespace(
        **dict.fromkeys(("max_num_batched_tokens", "max_num_seqs")),
        **dict.fromkeys(("pipeline_parallel_size", "tensor_parallel_size"), 1),
        performance_mode="balanced",
        enable_chunked_prefill=True,
        get_batch_defaults=AsyncEngineArgs.get_batch_defaults,
    )
    model = SimpleNamespace(max_model_len=32768, is_multimodal_model=False)
    AsyncEngineArgs._set_default_max_num_seqs_and_batched_tokens_args(
        asked,  # type: ignore[arg-type]
        given.get("usage_context"),
        model,  # type: ignore[arg-type]
        SimpleNamespace(use_batched_dp_moe=False),  # type: ignore[arg-type]
    )
    return asked.max_num_batched_tokens, asked.max_num_seqs


async def test_an_h100_is_given_as_much_as_by_vllms_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arg_utils, "current_platform", H100)
    assert await defaults_of_the_servers_engine(monkeypatch) == (8192, 1024)


async def test_a_cpu_is_given_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await defaults_of_the_servers_engine(monkeypatch) == (2048, 128)


async def test_a_machine_without_a_device_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, vLLM's build for GPUs has this platform."""
    monkeypatch.setattr(vllm.platforms, "_current_platform", UnspecifiedPlatform())
    with pytest.raises(ConfigError, match=r"no device.*--gpus all"):
        async with open_engine(EnginePlan({"model": "none"}, {}), Stages(quiet=True)):
            pass
