"""Compiled code of several members in one cache: none is taken for another's."""

from typing import Final

from vllm.config import VllmConfig

LABEL: Final = "eft_member"
"""The key of a member's label among the settings that are hashed."""


def keep_compiled_apart(config: VllmConfig, label: str) -> None:
    """Put a member's label into what names its compiled code.

    vLLM keeps what torch.compile makes by the model's tag, but what it compiles ahead of time, GPUs' default, by a
    hash of the settings alone (`aot_compile_hash_factors`). An adapter has its reference's settings: it would run its
    reference's code, without its low-rank terms and on its reference's attention layers.

    Args:
        config: the member's own; what it has in `additional_config` stays.
        label: the same at every start, and no other member's.
    """
    assert isinstance(config.additional_config, dict), "engine arguments are a dictionary here"
    config.additional_config = {**config.additional_config, LABEL: label}
