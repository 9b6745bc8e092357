"""What is wrong with a load test, before or while it runs."""

from eft_client.errors import EftError

__all__ = ["LoadError", "NothingAnswered"]


class LoadError(EftError, ValueError):
    """An option or a file that no load can be made of; the message names the value and what was expected."""


class NothingAnswered(EftError, RuntimeError):
    """A server answered none of the requests that were to warm it up, so there is nothing to measure."""
