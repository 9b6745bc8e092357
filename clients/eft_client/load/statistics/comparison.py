"""Targets beside each other: every figure's spread over the repeats, and its ratio to the baseline's."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eft_client.load.records import Header, Record
from eft_client.load.statistics.measures import FIGURES, errors, measure

__all__ = ["COMPARED", "Comparison", "Outcome", "Spread", "compare"]

#: The figures that ratios are taken of: what a server can be better or worse at.
COMPARED = (
    "requests_per_s",
    "goodput_per_s",
    "goodput_scheduled_per_s",
    "output_tokens_per_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "ttft_scheduled_ms_p50",
    "ttft_scheduled_ms_p99",
    "tpot_ms_p50",
    "tpot_ms_p99",
    "itl_ms_p50",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "e2e_scheduled_ms_p50",
    "e2e_scheduled_ms_p99",
)


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats: the median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """The spread of the values that exist; None where none does."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None

    def text(self, decimals: int) -> str:
        """`median (low to high)`, or just the median where all are equal."""
        median, low, high = (f"{value:,.{decimals}f}" for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low} to {high})"


@dataclass(frozen=True)
class Outcome:
    """One target under one load.

    Attributes:
        target: its name.
        load: the load's label.
        rounds: repeat -> its records.
        figures: repeat -> its figures by name.
    """

    target: str
    load: str
    rounds: Mapping[int, Sequence[Record]]
    figures: Mapping[int, Mapping[str, float | None]]

    @property
    def records(self) -> list[Record]:
        """Those of all rounds."""
        return [record for records in self.rounds.values() for record in records]

    @property
    def errors(self) -> Counter[str]:
        """Kinds of failure over all rounds."""
        return errors(self.records)

    def spread(self, figure: str) -> Spread | None:
        """One figure over the repeats."""
        return Spread.of(figures[figure] for figures in self.figures.values())

    def ratios(self, baseline: "Outcome", figure: str) -> Spread | None:
        """A figure over the baseline's of the same repeat."""
        pairs = (
            (self.figures[repeat][figure], baseline.figures[repeat][figure])
            for repeat in self.figures
            if repeat in baseline.figures
        )
        return Spread.of(mine / other for mine, other in pairs if mine is not None and other)


@dataclass(frozen=True)
class Comparison:
    """All outcomes of a run: load by load, targets in the order in which they were given."""

    header: Header
    outcomes: tuple[Outcome, ...]

    def under(self, load: str) -> list[Outcome]:
        """The outcomes under one load."""
        return [outcome for outcome in self.outcomes if outcome.load == load]

    def baseline(self, load: str) -> Outcome | None:
        """The baseline under one load; None where the run ended before it."""
        return next((one for one in self.under(load) if one.target == self.header.baseline), None)

    def titles(self) -> dict[str, str]:
        """The figures that exist anywhere in this run: name -> title."""
        known = {
            name
            for one in self.outcomes
            for each in one.figures.values()
            for name, v in each.items()
            if v is not None
        }
        return {figure.name: figure.title for figure in FIGURES if figure.name in known}


def compare(header: Header, records: Sequence[Record]) -> Comparison:
    """Sort a run's records into rounds, and measure each. Warm-up is left out."""
    rounds: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for record in records:
        if not record.warm_up:
            key = (record.load, record.contestant)
            rounds.setdefault(key, {}).setdefault(record.repeat, []).append(record)
    outcomes = []
    for load in header.loads:
        for target in header.contestants:
            repeats = dict(sorted(rounds.get((load, target), {}).items()))
            if repeats:
                figures = {repeat: measure(own, header.limits) for repeat, own in repeats.items()}
                outcomes.append(Outcome(target, load, repeats, figures))
    return Comparison(header, tuple(outcomes))
