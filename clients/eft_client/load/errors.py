"""The errors of a load test, before or while it runs."""

from eft_client.errors import EftError

__all__ = ["LoadError", "NothingAnswered"]


class LoadError(EftError, ValueError):
    """An option or a file that no load can be made of; the message names the value and what was expected."""


class NothingAnswered(EftError, RuntimeError):
    """A server answered no warm-up request, so there is nothing to measure."""
