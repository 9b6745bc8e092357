"""The errors of a study: wrong input, or a server that does not do what it needs."""

from eft_client.errors import EftError

__all__ = ["StudyError"]


class StudyError(EftError, ValueError):
    """A study that cannot continue; the message names the value and what was expected."""
