"""The model name that the current request asked for: a family has many, its engine one."""

from contextvars import ContextVar

__all__ = ["answering_as"]

answering_as: ContextVar[str] = ContextVar("answering_as")
"""The name that the response of the current request bears."""
