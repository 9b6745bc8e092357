"""Uvicorn's server, which ends as its hosts expect: what is under way is finished or told, and new requests refused."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from typing_extensions import override

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.edge.signals import handled_by, tell

__all__ = ["DrainingServer", "stopping"]

_RETRY_AFTER_S = 5
_POLL_S = 0.05
LAST_WORDS_S = 2
"""How long answers may take to send an error before connections are closed."""


class DrainingServer(uvicorn.Server):
    """A server that a signal drains.

    From the first signal on, new requests get 503, and hosts are told that the server is not ready: the port still
    listens, since a host that sees it closed cannot tell why. Requests under way have a time to finish; then each ends
    with an error, streams too. A second signal ends that time at once.

    Args:
        config: Uvicorn's options.
        under_way: The application's requests.
        drain_s: How long requests under way may take to finish.
        say: Tells the operator, by default on stderr.

    Attributes:
        asked: The number of the signal that it was asked to stop by, if there was one.
        hurried: The number of the second signal, if there was one.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        under_way: UnderWay,
        drain_s: float,
        say: Callable[[str], None] = tell,
    ) -> None:
        super().__init__(config)
        self._under_way = under_way
        self._drain_s = drain_s
        self._say = say
        self.asked: int | None = None
        self.hurried: int | None = None

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; the second signal ends the draining, whichever it is."""
        if self.asked is not None:
            self.force_exit, self.hurried = True, sig
            return
        self.should_exit, self.asked = True, sig
        self._under_way.refuse(stopping())  # Now, and not when the main loop looks next.
        count = self._under_way.count
        what = f" once {count} request{'s have' if count > 1 else ' has'} ended, or in {self._drain_s:g} s"
        self._say(f"Stopping{what if count else ''} ({signal.Signals(sig).name}; another one: at once)")

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end what is left with an error, and close the connections."""
        self._under_way.refuse(stopping())
        await self._until_idle(self._drain_s)
        if left := self._under_way.count:
            self._say(f"Ending {left} request{'s' if left > 1 else ''} with an error")
            self._under_way.end(stopping("; the answer is not complete"))
        self.force_exit = False
        await self._until_idle(LAST_WORDS_S)
        self.force_exit = self.hurried is not None
        await super().shutdown(sockets)

    async def _until_idle(self, most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while self._under_way.count and not self.force_exit:
                    await asyncio.sleep(_POLL_S)

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        with handled_by(self.handle_exit):
            yield


def stopping(rest: str = "") -> ApiError:
    """The error for requests that come while the server stops, or are then cut off."""
    headers = {"Connection": "close", "Retry-After": str(_RETRY_AFTER_S)}
    return ApiError(f"The server is stopping{rest}.", status=503, headers=headers)
