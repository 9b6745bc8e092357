"""The memory for the logits of a step, in addition to weights, KV cache and activations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eft_server.errors import ConfigError
from eft_server.family.inspection import FamilyReport

_FLOAT = 4


_SIZES = ("max_num_batched_tokens", "max_num_seqs")


@dataclass(frozen=True)
class StepMemory:
    """The most memory that the logits of one step need, in bytes, by kind of step.

    Attributes:
        requests: requests that are served at once.
        tokens: tokens in a step, including those of prompts.
        sampled: bytes if each request samples one token.
        drafted: bytes if each request's drafted tokens are verified; None without speculation.
        prompts: bytes if the log-probabilities of prompts are requested.
    """

    requests: int
    tokens: int
    sampled: int
    drafted: int | None
    prompts: int


def step_memory(options: Mapping[str, Any], report: FamilyReport) -> StepMemory:
    """Calculate the memory for the logits of a step.

    Args:
        options: vLLM's options; without limits on requests and tokens in a step, vLLM's defaults for servers apply.
        report: the family's report.

    Raises:
        ConfigError: a size is not a positive number.
    """
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.worker.gpu.sample.prompt_logprob import CHUNK_SIZE

    ranks = int(options.get("tensor_parallel_size") or 1)
    defaults = (
        of_context[UsageContext.OPENAI_API_SERVER] for of_context in AsyncEngineArgs.get_batch_defaults(ranks)
    )
    asked = (options.get(name) for name in _SIZES)
    tokens, requests = (
        default if given is None else _count(name, given)
        for name, given, default in zip(_SIZES, asked, defaults, strict=True)
    )
    drafts = int((options.get("speculative_config") or {}).get("num_speculative_tokens") or 0)
    on_cpu = bool(current_platform.is_cpu())

    def needed(rows: int, *, sampled: bool = True) -> int:
        members = len(report.members)
        size = report.vocabulary.size
        return logits_bytes(min(rows, tokens), size, members, kernels=not on_cpu, sampled=sampled)

    drafted = needed(requests * (1 + drafts)) if drafts else None
    return StepMemory(requests, tokens, needed(requests), drafted, needed(CHUNK_SIZE, sampled=False))


def _count(name: str, given: Any) -> int:
    if not isinstance(given, int) or given < 1:
        raise ConfigError(f"vllm.{name}: {given!r} is not a positive whole number")
    return given


def logits_bytes(rows: int, vocabulary: int, members: int, *, kernels: bool, sampled: bool) -> int:
    """The most memory that blending takes, in bytes, with a filter on every row, and a report where there may be one.

    Args:
        rows: R.
        vocabulary: V.
        members: M.
        kernels: whether Triton's kernels blend, on GPUs: they need two rows of floats for each row, and one member's
            logits. PyTorch, on CPUs, holds all members' logits at once, several times for filters, but for fewer rows.
        sampled: whether tokens are sampled from the rows, so that all may be compared with the base's: kernels then
            need one more row of floats for each.
    """
    row = vocabulary * _FLOAT
    if kernels:
        return (3 + sampled) * rows * row
    from eft_server.engine.worker.rows import rows_at_once

    return rows * row + 5 * members * min(rows, rows_at_once(vocabulary)) * row
