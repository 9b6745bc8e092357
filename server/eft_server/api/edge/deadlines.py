"""The requests under way: each has deadlines, which all expire early when the server stops or its engine is lost."""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet

from eft_server.api.edge.api_error import ApiError

__all__ = ["Deadline", "UnderWay"]

T = TypeVar("T")


class Deadline:
    """A deadline for awaiting, which may be brought forward.

    Args:
        seconds: Time until the deadline.
        over: The error to raise at the deadline.
    """

    def __init__(self, seconds: float, over: ApiError) -> None:
        self._end = time.monotonic() + seconds
        self._over = over
        self._scope: asyncio.Timeout | None = None

    def end(self, error: ApiError) -> None:
        """Expire now, with this error."""
        self._end, self._over = time.monotonic(), error
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def wait_for(self, awaitable: Awaitable[T]) -> T:
        """Await until the deadline.

        Raises:
            ApiError: The deadline has passed.
        """
        scope = asyncio.timeout(self._end - time.monotonic())
        try:
            async with scope:
                self._scope = scope
                return await awaitable
        except Exception:
            # Not only TimeoutError: a vLLM handler turns the cancellation into an error of another type.
            if scope.expired():
                raise self._over from None
            raise
        finally:
            self._scope = None


class UnderWay:
    """The requests under way, and whether more may come.

    Attributes:
        count: How many there are.
    """

    def __init__(self) -> None:
        self._deadlines = WeakSet[Deadline]()
        self._ended: ApiError | None = None
        self._refusal: ApiError | None = None
        self.count = 0

    @property
    def refusal(self) -> ApiError | None:
        """The error for new requests; None while they are welcome."""
        return self._refusal or self._ended

    def refuse(self, error: ApiError) -> None:
        """Refuse new requests from now on, for good; those under way go on."""
        self._refusal = self._refusal or error

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def deadline(self, seconds: float, over: ApiError) -> Deadline:
        """A deadline for one more request."""
        deadline = Deadline(seconds, over)
        self._deadlines.add(deadline)
        if self._ended is not None:
            deadline.end(self._ended)
        return deadline

    def end(self, error: ApiError) -> None:
        """End all deadlines, including later ones, and refuse new requests."""
        self._ended = error
        for deadline in list(self._deadlines):
            deadline.end(error)

    def resume(self) -> None:
        """Let new requests in again, after `end`, unless they are refused for good."""
        self._ended = None
