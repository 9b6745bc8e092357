"""Separate entries in the compile cache for each member."""

from typing import Final

from vllm.config import VllmConfig

LABEL: Final = "eft_member"
"""The key of a member's label in the settings that are hashed."""


def separate_compiled_code(config: VllmConfig, label: str) -> None:
    """Put a member's label into the cache key of its compiled code.

    vLLM caches the output of torch.compile by the model's tag, but code that is compiled ahead of time, the default on
    GPUs, only by a hash of the settings (`aot_compile_hash_factors`). An adapter has its reference's settings: it would
    run its reference's code, without its low-rank terms and on its reference's attention layers.

    Args:
        config: the member's; other keys of its `additional_config` stay.
        label: unique to the member, and the same at every start.
    """
    assert isinstance(config.additional_config, dict), "engine arguments are a dictionary here"
    config.additional_config = {**config.additional_config, LABEL: label}
