"""vLLM's entry point into this package (group `vllm.general_plugins`).

vLLM calls `register` in every process that it starts, and skips a plugin that fails to import: so this module imports
nothing heavy, and registers the class by name.
"""

ARCHITECTURE = "EftForCausalLM"
"""The architecture's name in `hf_overrides` and in vLLM's registry."""

_MODEL = "eft_server.engine.worker.composite:EftForCausalLM"


def register() -> None:
    """Register the composite with vLLM, and filter vLLM's log. Safe to call more than once."""
    from vllm import ModelRegistry

    from eft_server.engine.launcher.vllm_log import hide_expected_warnings

    hide_expected_warnings()

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, _MODEL)
