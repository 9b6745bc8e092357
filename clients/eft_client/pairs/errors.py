"""The error of a file of pairs, and how a server words one that both commands answer."""

from eft_client.errors import EftError

__all__ = ["NO_END", "PairsError"]

NO_END = "end-of-turn"
"""What a server says of a turn's end, where the family has no token for it."""


class PairsError(EftError, ValueError):
    """A file of pairs, or a family, cannot be used; the message names the line or the value, and what was expected."""
