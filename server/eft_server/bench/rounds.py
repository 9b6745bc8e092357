"""Rounds of measurements, and the figures derived from them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eft_server.bench.targets import Drafts, Job, Timed, Timing


@dataclass
class Rounds:
    """Tokens per second of each target, one value a round, at one batch size.

    Attributes:
        title: name of the measurement.
        batch: requests at once.
        reading: whether the tokens were read (prefill), not generated.
        tokens_per_s: target -> a value for each round; the same index is the same round.
        drafts: target -> drafted and accepted tokens in all rounds, for those that draft.
    """

    title: str
    batch: int
    reading: bool
    tokens_per_s: dict[str, list[float]] = field(default_factory=dict)
    drafts: dict[str, Drafts] = field(default_factory=dict)

    def add(self, name: str, job: Job, timing: Timing) -> None:
        """Add one measurement."""
        self.tokens_per_s[name].append(job.counted / timing.seconds)
        if timing.drafts.drafted:
            before = self.drafts.get(name, Drafts())
            self.drafts[name] = Drafts(
                before.drafted + timing.drafts.drafted, before.accepted + timing.drafts.accepted
            )

    def median(self, name: str) -> float:
        """Median tokens per second."""
        return statistics.median(self.tokens_per_s[name])

    def bound(self, members: Sequence[str]) -> list[float]:
        """The speed of a composite without overhead, by round: 1 / Σ 1/tps over its members."""
        rounds = zip(*(self.tokens_per_s[name] for name in members), strict=True)
        return [1 / sum(1 / value for value in values) for values in rounds]

    def acceptance(self, name: str) -> float | None:
        """The share of drafted tokens that were accepted; None for targets that do not draft."""
        drafts = self.drafts.get(name, Drafts())
        return drafts.accepted / drafts.drafted if drafts.drafted else None

    def ratios(self, name: str, others: Sequence[float]) -> list[float]:
        """A target's values divided by others, round by round."""
        return [value / other for value, other in zip(self.tokens_per_s[name], others, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def run(
    title: str,
    targets: Mapping[str, Timed],
    jobs: Sequence[Job],
    advance: Callable[[str], None],
    *,
    rest_s: float = 0.0,
) -> Rounds:
    """Time every target in every round, in a changing order, after a warm-up.

    Args:
        title: name of the measurement.
        targets: the targets, by name.
        jobs: the job to warm up, and then one job for each round. Repeated prompts come from the prefix cache: when
            prefill is measured, each job needs new ones.
        advance: called with a name after each measurement.
        rest_s: seconds to wait before each measurement, so that the last target does not share the cores.
    """
    warm_up, *rounds = jobs
    result = Rounds(title, len(warm_up.prompts), warm_up.reads, {name: [] for name in targets})
    shuffled = random.Random(0)
    for target in targets.values():
        target.time(warm_up)
    for job in rounds:
        for name in shuffled.sample(list(targets), len(targets)):
            time.sleep(rest_s)
            result.add(name, job, targets[name].time(job))
            advance(name)
    return result


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the lowest and highest, for a table."""
    middle, least, most = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least} to {most})"
