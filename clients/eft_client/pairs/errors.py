"""The error of a file of pairs."""

from eft_client.errors import EftError

__all__ = ["PairsError"]


class PairsError(EftError, ValueError):
    """A file of pairs, or a family, cannot be used; the message names the line or the value, and what was expected."""
