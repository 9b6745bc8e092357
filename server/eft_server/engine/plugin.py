"""vLLM's entry point into this package (group `vllm.general_plugins`).

vLLM calls `register` in every process that it starts, and skips a plugin that fails to import: so this module imports
nothing heavy, and registers the class by name.
"""

import sys

ARCHITECTURE = "EftForCausalLM"
"""The architecture's name in `hf_overrides` and in vLLM's registry."""

_MODEL = "eft_server.engine.worker.composite:EftForCausalLM"

_STARTS = "vllm.engine.arg_utils"
"""The module that starts engines; it loads the plugins first."""


def register() -> None:
    """Register the composite with vLLM, plan engines that a host starts, and filter vLLM's log.

    Safe to call more than once.
    """
    from vllm import ModelRegistry

    from eft_server.engine.launcher.vllm_log import hide_expected_warnings

    hide_expected_warnings()

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, _MODEL)

    if _STARTS in sys.modules:  # Not in the engine's own processes, which start no engines.
        from eft_server.hosts.engine_arguments import install

        install()
