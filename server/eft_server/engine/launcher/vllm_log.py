"""Filters vLLM's log: warnings that are expected at every start of a family are hidden unless the log is verbose."""

import logging
import os
import warnings

from typing_extensions import override

__all__ = ["SHORT", "Unexpected", "hide_expected_warnings", "quieten_imports"]

SHORT = "EFT_SHORT_LOG"
"""The environment variable that turns the filter on in all processes of an engine, but not in other vLLM programs."""

_EXPECTED = (
    # Settings of this package, which `eft check` shows.
    "Enforce eager set, disabling torch.compile",
    "Inductor compilation was disabled by user settings",
    "Using custom scheduler class",
    # Our kernel replaces one that is wrong on CPUs (`cpu_kernels`).
    "Kernel %s is already registered",
    # A call that a model wrote and a client sent back.
    "Tool call %r ",
    # Irrelevant on CPUs: Triton has no kernels for them, and members with such states are refused.
    "Triton is not installed",
    "Model Runner V2 requires Triton",
    "Reset SSM cache type",
    # As intended: one thread for each core, bound to it.
    "OMP_NUM_THREADS=%s is set",
    # docs/performance.md says how much they help.
    "%s is not found in LD_PRELOAD",
    "Speculative decoding on CPU without Intel OpenMP",
)

_PARSERS = ("vllm.tool_parsers.", "vllm.parser.")
"""Parsers that warn if they cannot parse a model's text, such as a truncated call; the answer shows it anyway."""


def quieten_imports() -> None:
    """Hide the messages about Triton while vLLM and torch are imported."""
    if SHORT in os.environ:
        for name in ("torch._library.triton", "vllm.triton_utils.importing"):
            logging.getLogger(name).setLevel(logging.ERROR)


class Unexpected(logging.Filter):
    """Passes only unexpected messages."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record."""
        return not (str(record.msg).startswith(_EXPECTED) or record.name.startswith(_PARSERS))


def hide_expected_warnings() -> None:
    """Filter this process's log if the program wants a short one; a second call does nothing."""
    from vllm import logger

    if SHORT not in os.environ:
        return
    # vLLM installs its handler from here, in some processes earlier than in others.
    logger.DEFAULT_LOGGING_CONFIG["filters"] = {"unexpected": {"()": f"{__name__}.Unexpected"}}
    logger.DEFAULT_LOGGING_CONFIG["handlers"]["vllm"]["filters"] = ["unexpected"]
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(known, Unexpected) for known in handler.filters):
            handler.addFilter(Unexpected())
    # Raised while vLLM's CPU kernels are inspected.
    warnings.filterwarnings(
        "ignore", message="`torch.distributed.reduce_op` is deprecated", category=FutureWarning
    )
