"""What /metrics tells of requests on their way in: errors that were sent, and requests that wait for room."""

from typing import Literal

from prometheus_client import Counter, Gauge

__all__ = ["READY", "count_error", "waiting"]

_ERRORS = Counter(
    "eft:request_errors",
    "Requests that were refused or failed, by HTTP status and error code, those of started streams included.",
    ["status", "code"],
)
_WAITING = Gauge(
    "eft:waiting_requests",
    "Requests that wait for room before the engine, by what there is no room for.",
    ["limit"],
    multiprocess_mode="livesum",
)
READY = Gauge(
    "eft:ready",
    "1 while requests are let in, 0 while the server is stopping or its engine is lost.",
    multiprocess_mode="livemin",
)


def count_error(status: int, code: str, *, times: int = 1) -> None:
    """Count an error that is sent to a client; the code is one of this package's, never a client's text."""
    _ERRORS.labels(str(status), code).inc(times)


def waiting(limit: Literal["requests", "sequences"]) -> Gauge:
    """The gauge of requests that wait: for a place among the requests under way, or for room for their sequences."""
    return _WAITING.labels(limit)
