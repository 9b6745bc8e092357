"""Watching an engine while requests are under way: when it is lost, they end with an error instead of hanging."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.serving.pulse import Pulse

__all__ = ["LOST_S", "keep_watch", "watch_for_host", "watched"]

LOST_S = 30.0
"""How long an engine may be stopped before it is given up."""

_INTERVAL_S = 1.0
_RETRY_AFTER_S = 5

_logger = logging.getLogger(__name__)


async def keep_watch(pulse: Pulse, under_way: UnderWay) -> None:
    """Refuse requests, and end those under way, while the engine is lost; return once it is given up.

    Args:
        pulse: The engine's.
        under_way: The application's requests.
    """
    beating = asyncio.create_task(pulse.beat())
    lost_s: float | None = None
    problem: str | None = None
    try:
        while not pulse.has_ended:
            await asyncio.sleep(_INTERVAL_S)
            before, problem = problem, pulse.problem()
            if problem is None:
                if lost_s is not None:
                    _logger.warning("The engine is back")
                    under_way.resume()
                lost_s = None
            elif before is None:
                pass  # Seen once, it may be a profiler that stops a process for a moment.
            elif lost_s is None:
                lost_s = time.monotonic()
                _logger.error("Requests are refused: %s", problem)
                under_way.end(_lost(problem))
            elif time.monotonic() - lost_s > LOST_S:
                break
    finally:
        beating.cancel()
    under_way.end(_lost(pulse.problem() or "the engine has stopped"))


async def watch_for_host(pulse: Pulse, under_way: UnderWay) -> None:
    """Keep watch, and kill an engine that is given up: its host sees that."""
    await keep_watch(pulse, under_way)
    pulse.kill()


@asynccontextmanager
async def watched(pulse: Pulse, under_way: UnderWay) -> AsyncIterator[None]:
    """Do as `watch_for_host` while the block runs."""
    watch = asyncio.create_task(watch_for_host(pulse, under_way))
    try:
        yield
    finally:
        watch.cancel()


def _lost(problem: str) -> ApiError:
    message = f"The server cannot answer at present: {problem}."
    return ApiError(message, status=503, headers={"Retry-After": str(_RETRY_AFTER_S)})
