"""Points in time until which things are awaited, all of which the server's end may bring forward."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar
from weakref import WeakSet

from eft_server.api.edge.errors import ApiError

__all__ = ["Deadline", "UnderWay"]

T = TypeVar("T")


class Deadline:
    """A point in time until which things may be awaited; it may be brought forward.

    Args:
        seconds: How long that is.
        over: What is raised then.
    """

    def __init__(self, seconds: float, over: ApiError) -> None:
        self._end = time.monotonic() + seconds
        self._over = over
        self._scope: asyncio.Timeout | None = None

    def end(self, error: ApiError) -> None:
        """Let nothing be awaited from now on."""
        self._end, self._over = time.monotonic(), error
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def wait_for(self, awaitable: Awaitable[T]) -> T:
        """Await, but not longer.

        Raises:
            ApiError: Time is up.
        """
        scope = asyncio.timeout(self._end - time.monotonic())
        try:
            async with scope:
                self._scope = scope
                return await awaitable
        except Exception:
            # Not TimeoutError alone: a vLLM handler turns the cancellation into an error of its own.
            if scope.expired():
                raise self._over from None
            raise
        finally:
            self._scope = None


class UnderWay:
    """What is being read, waited for or answered: all of it can be ended, with an error each and none in silence."""

    def __init__(self) -> None:
        self._deadlines = WeakSet[Deadline]()
        self._ended: ApiError | None = None

    def deadline(self, seconds: float, over: ApiError) -> Deadline:
        """For one more of them."""
        deadline = Deadline(seconds, over)
        self._deadlines.add(deadline)
        if self._ended is not None:
            deadline.end(self._ended)
        return deadline

    def end(self, error: ApiError) -> None:
        """End all of them, and those that may still come."""
        self._ended = error
        for deadline in list(self._deadlines):
            deadline.end(error)
