"""What the logits of a step take, beside weights, KV cache and activations."""

from dataclasses import dataclass

from eft_server.engine.plan import EnginePlan
from eft_server.errors import ConfigError
from eft_server.family import FamilyReport

_FLOAT = 4
_PROMPT_ROWS = 1024
"""Rows of a prompt whose log-probabilities vLLM asks for at a time."""


@dataclass(frozen=True)
class StepMemory:
    """How much memory the logits of one step need at most, in bytes, and of what kind of step.

    Attributes:
        requests: how many are served at once.
        tokens: how many of them, and of their prompts, a step takes.
        sampled: bytes, where each request samples one token.
        drafted: bytes, where each has drafted tokens verified; None without speculation.
        prompts: bytes, where the log-probabilities of prompts are asked for.
    """

    requests: int
    tokens: int
    sampled: int
    drafted: int | None
    prompts: int


def step_memory(plan: EnginePlan, report: FamilyReport) -> StepMemory:
    """Ask vLLM how many requests and tokens a step takes, and reckon what their logits need.

    Raises:
        ConfigError: vLLM refuses the options.
    """
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        engine = AsyncEngineArgs(**plan.options).create_engine_config(UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise ConfigError(f"vLLM: {error}") from error
    scheduler, drafts = engine.scheduler_config, engine.num_speculative_tokens
    vocabulary, members = report.vocabulary.size, len(report.members)
    kernels = engine.use_v2_model_runner

    def needed(rows: int) -> int:
        return logits_bytes(min(rows, scheduler.max_num_batched_tokens), vocabulary, members, kernels=kernels)

    requests = scheduler.max_num_seqs
    return StepMemory(
        requests,
        scheduler.max_num_batched_tokens,
        needed(requests),
        needed(requests * (1 + drafts)) if drafts else None,
        needed(_PROMPT_ROWS),
    )


def logits_bytes(rows: int, vocabulary: int, members: int, *, kernels: bool) -> int:
    """What blending takes at most, with a filter on every row.

    Args:
        rows: R.
        vocabulary: V.
        members: M.
        kernels: whether Triton's kernels blend, on GPUs: two rows of floats for each row, and one member's logits.
            PyTorch, on CPUs, holds all members' side by side, and several times over for filters, but of some rows.
    """
    row = vocabulary * _FLOAT
    if kernels:
        return 3 * rows * row
    from eft_server.engine.rows import rows_at_once

    return rows * row + 5 * members * min(rows, rows_at_once(vocabulary)) * row
