"""The errors of a training."""

from eft_server.errors import EftError

__all__ = ["Interrupted", "TrainingError"]


class TrainingError(EftError, ValueError):
    """A training cannot begin or go on; the message names the file, line and field, or the option and its value."""


class Interrupted(EftError):
    """A training was told to stop, and has saved what it takes to resume."""
