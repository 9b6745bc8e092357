"""The error of `eft dynamics`: wrong input, or a family that has no checkpoints of one training."""

from eft_client.errors import EftError

__all__ = ["DynamicsError"]


class DynamicsError(EftError, ValueError):
    """A report that cannot be made; the message names the value and what was expected."""
