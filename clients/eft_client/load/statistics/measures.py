"""Figures of one round, from nothing but its records; defined as vLLM's `bench serve` defines them, where it does."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eft_client.load.arrivals import is_open
from eft_client.load.records import INTERRUPTED, Record

__all__ = [
    "FIGURES",
    "LATENCIES",
    "SCHEDULED",
    "Figure",
    "concurrency_over_time",
    "errors",
    "measure",
    "tokens_over_time",
    "values",
]

#: Latency -> what it is.
LATENCIES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token after the first",
    "itl_ms": "gap between pieces of output",
    "e2e_ms": "end to end",
}
#: Latency -> the same from the scheduled time, in open loops: a request that is sent late has waited already.
SCHEDULED = {"ttft_ms": "ttft_scheduled_ms", "e2e_ms": "e2e_scheduled_ms"}
_TITLES = {name: name[:-3].upper() for name in LATENCIES} | {
    scheduled: f"{name[:-3].upper()} from schedule" for name, scheduled in SCHEDULED.items()
}
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "p50": lambda values: float(np.percentile(values, 50)),
    "p90": lambda values: float(np.percentile(values, 90)),
    "p99": lambda values: float(np.percentile(values, 99)),
}


@dataclass(frozen=True)
class Figure:
    """One figure: its name, what tables call it, and how many decimals they show."""

    name: str
    title: str
    decimals: int


FIGURES = (
    Figure("completed", "completed", 0),
    Figure("failed", "failed", 0),
    Figure("interrupted", "interrupted", 0),
    Figure("duration_s", "duration, s", 2),
    Figure("requests_per_s", "requests/s", 2),
    Figure("goodput_per_s", "goodput, requests/s", 2),
    Figure("goodput_scheduled_per_s", "goodput from schedule, requests/s", 2),
    Figure("output_tokens_per_s", "output tokens/s", 1),
    Figure("total_tokens_per_s", "all tokens/s", 1),
    Figure("concurrency", "concurrency, mean", 2),
    Figure("concurrency_peak", "concurrency, peak", 0),
    Figure("input_tokens", "input tokens, mean", 1),
    Figure("output_tokens", "output tokens, mean", 1),
    Figure("tokens_per_chunk", "tokens a piece", 2),
    Figure("late_ms_p99", "sent late, p99 ms", 2),
    *(
        Figure(f"{name}_{statistic}", f"{title} {statistic}, ms", 2)
        for name, title in _TITLES.items()
        for statistic in STATISTICS
    ),
)


def measure(records: Sequence[Record], limits: Mapping[str, float]) -> dict[str, float | None]:
    """Every figure of one round; None where it doesn't exist.

    Rates are over the round's duration: from its start to the end of its last request. Latencies are those of completed
    requests; so are tokens. What runs from the scheduled time exists only in open loops.

    Args:
        records: the round's, at least one.
        limits: latency -> its upper limit in ms; empty leaves goodput out.
    """
    done = [record for record in records if record.error is None]
    duration_s = max(record.end_ms for record in records) / 1000
    output = sum(record.tokens for record in done)
    total = output + sum(record.prompt_tokens or 0 for record in done)
    kinds = errors(records)
    opened = is_open(records[0].load)
    from_schedule = {SCHEDULED.get(name, name): limit for name, limit in limits.items()}
    found: dict[str, float | None] = {
        "completed": len(done),
        "failed": sum(count for kind, count in kinds.items() if kind != INTERRUPTED),
        "interrupted": kinds[INTERRUPTED],
        "duration_s": duration_s,
        "requests_per_s": _ratio(len(done), duration_s),
        "goodput_per_s": _goodput(done, limits, duration_s),
        "goodput_scheduled_per_s": _goodput(done, from_schedule, duration_s) if opened else None,
        "output_tokens_per_s": _ratio(output, duration_s),
        "total_tokens_per_s": _ratio(total, duration_s),
        "concurrency": _ratio(sum(record.end_ms - record.sent_ms for record in records) / 1000, duration_s),
        "concurrency_peak": _peak(records),
        "input_tokens": _mean([record.prompt_tokens for record in done if record.prompt_tokens is not None]),
        "output_tokens": _mean([record.tokens for record in done]),
        "tokens_per_chunk": _ratio(output, sum(len(record.chunks_ms) for record in done)),
        "late_ms_p99": STATISTICS["p99"]([record.sent_ms - record.scheduled_ms for record in records]),
    }
    for name in _TITLES:
        observed = values(done, name) if opened or name not in SCHEDULED.values() else []
        for statistic, take in STATISTICS.items():
            found[f"{name}_{statistic}"] = take(observed) if observed else None
    return found


def values(records: Sequence[Record], latency: str) -> list[float]:
    """All that was observed of one latency in requests that completed, in ms."""
    done = (record for record in records if record.error is None)
    if latency == "itl_ms":
        return [gap for record in done for gap in record.itl_ms]
    found = (getattr(record, latency) for record in done)
    return [value for value in found if value is not None]


def errors(records: Sequence[Record]) -> Counter[str]:
    """Kind of failure -> how many requests failed so."""
    return Counter(record.error for record in records if record.error is not None)


def concurrency_over_time(records: Sequence[Record], places: int = 200) -> tuple[list[float], list[float]]:
    """How many requests were under way, on average, in each of `places` equal parts of a round: seconds, counts."""
    edges = np.linspace(0, max(record.end_ms for record in records) / 1000, places + 1)
    starts = np.array([record.sent_ms for record in records]) / 1000
    ends = np.array([record.end_ms for record in records]) / 1000
    busy = np.array([np.clip(edge - starts, 0, ends - starts).sum() for edge in edges])
    width = edges[1] - edges[0]
    counts = np.diff(busy) / width if width else np.zeros(places)
    return list((edges[:-1] + edges[1:]) / 2), list(counts)


def tokens_over_time(records: Sequence[Record], places: int = 60) -> tuple[list[float], list[float]]:
    """Output tokens per second in each of `places` equal parts of a round: seconds, tokens/s.

    A request's tokens are spread evenly over its pieces of output.
    """
    times = [time / 1000 for record in records for time in record.chunks_ms]
    each = [record.tokens / len(record.chunks_ms) for record in records for _ in record.chunks_ms]
    end = max(record.end_ms for record in records) / 1000
    counts, edges = np.histogram(times, bins=places, range=(0, end or 1), weights=each)
    return list((edges[:-1] + edges[1:]) / 2), list(counts / (edges[1] - edges[0]))


def _goodput(records: Sequence[Record], limits: Mapping[str, float], duration_s: float) -> float | None:
    good = sum(_is_good(record, limits) for record in records)
    return _ratio(good, duration_s) if limits else None


def _is_good(record: Record, limits: Mapping[str, float]) -> bool:
    """Whether a request kept every limit; one without a TPOT keeps TPOT's."""
    return all((getattr(record, name) or 0.0) <= limit for name, limit in limits.items())


def _peak(records: Sequence[Record]) -> int:
    """The most requests that were under way at one time; one that ends as another begins was not beside it."""
    steps = sorted([(record.sent_ms, 1) for record in records] + [(record.end_ms, -1) for record in records])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(counts: Sequence[int]) -> float | None:
    return sum(counts) / len(counts) if counts else None
