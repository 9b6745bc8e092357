"""The error of a probe: wrong input, or a server that does not do what it needs."""

from eft_client.errors import EftError

__all__ = ["ProbeError"]


class ProbeError(EftError, ValueError):
    """Probing cannot continue; the message names the value and what was expected."""
