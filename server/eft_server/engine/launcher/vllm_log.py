"""What vLLM warns of at every start of a family, and is as it should be: left out of its log unless that is verbose."""

import logging
import os
import warnings

from typing_extensions import override

__all__ = ["SHORT", "Unexpected", "leave_out_the_expected", "quieten_imports"]

SHORT = "EFT_SHORT_LOG"
"""The variable of the environment that says so to all processes of an engine, and to no other program of vLLM's."""

_EXPECTED = (
    # What this package decides; `eft check` shows it.
    "Enforce eager set, disabling torch.compile",
    "Inductor compilation was disabled by user settings",
    "Using custom scheduler class",
    # Ours in place of one that is wrong on CPUs (`cpu_kernels`).
    "Kernel %s is already registered",
    # What a model wrote and a client sent back.
    "Tool call %r ",
    # Of no use to a CPU: Triton has no kernels for it, and members with such states are refused.
    "Triton is not installed",
    "Model Runner V2 requires Triton",
    "Reset SSM cache type",
    # The threads are as many as there are cores to compute on, and bound to them.
    "OMP_NUM_THREADS=%s is set",
    # docs/performance.md says what they are worth.
    "%s is not found in LD_PRELOAD",
    "Speculative decoding on CPU without Intel OpenMP",
)

_PARSERS = ("vllm.tool_parsers.", "vllm.parser.")
"""What these cannot read of a model's text, such as a call that was cut off, is in the answer."""


def quieten_imports() -> None:
    """The same for what is said while vLLM and torch are imported: which Triton is there, if any."""
    if SHORT in os.environ:
        for name in ("torch._library.triton", "vllm.triton_utils.importing"):
            logging.getLogger(name).setLevel(logging.ERROR)


class Unexpected(logging.Filter):
    """Passes what is not expected."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        return not (str(record.msg).startswith(_EXPECTED) or record.name.startswith(_PARSERS))


def leave_out_the_expected() -> None:
    """Do so in this process, where the program wants a short log; a second call does nothing."""
    from vllm import logger

    if SHORT not in os.environ:
        return
    # From here vLLM sets its handler up, some processes earlier than others.
    logger.DEFAULT_LOGGING_CONFIG["filters"] = {"unexpected": {"()": f"{__name__}.Unexpected"}}
    logger.DEFAULT_LOGGING_CONFIG["handlers"]["vllm"]["filters"] = ["unexpected"]
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(known, Unexpected) for known in handler.filters):
            handler.addFilter(Unexpected())
    # Of what vLLM's own kernels for CPUs look through.
    warnings.filterwarnings(
        "ignore", message="`torch.distributed.reduce_op` is deprecated", category=FutureWarning
    )
