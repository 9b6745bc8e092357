"""When to retry a request, and how long to wait before."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from eft_client.errors import Busy, ConnectionFailed, EftError

__all__ = ["MAX_RETRY_AFTER_S", "Retries", "retry_after_s"]

MAX_RETRY_AFTER_S = 60.0
"""A server that asks for more is not asked again: the caller gets the error, and decides."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Exponential back-off with full jitter, unless the server says how long to wait.

    Attributes:
        count: How often a request is sent again at most.
        first_s: The longest first wait; each further one is up to twice as long.
        longest_s: The longest wait of all.
    """

    count: int
    first_s: float = 0.5
    longest_s: float = 8.0

    def delay_s(
        self, error: EftError, attempt: int, uniform: Callable[[], float] = random.random
    ) -> float | None:
        """How long to wait after the failed attempt of this number, from 0; None means do not retry.

        Retried are a busy server, and a connection that was refused or broke off before an answer.
        """
        if attempt >= self.count or not isinstance(error, Busy | ConnectionFailed):
            return None
        asked_s = error.retry_after_s if isinstance(error, Busy) else None
        if asked_s is None:
            return uniform() * min(self.longest_s, self.first_s * 2.0 ** min(attempt, 32))
        # Up to a quarter more, at random, so that clients that were refused together do not come back together.
        return asked_s * (1 + uniform() / 4) if asked_s <= MAX_RETRY_AFTER_S else None


def retry_after_s(header: str | None, now_s: float | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date (RFC 9110, 10.2.3).

    None where there is no header, or one that says neither.
    """
    if header is None:
        return None
    text = header.strip()[:64]
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        until_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, until_s - (time.time() if now_s is None else now_s))
