"""How much of the gap between a small expert and a truly fine-tuned large model an emulation closes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eft_client.quality.errors import StudyError
from eft_client.quality.statistics.bootstrap import LEVEL, Bootstrap, Estimate, interval
from eft_client.quality.statistics.permutation import SignFlips

__all__ = ["Gap", "GapClosed", "close_gaps"]


@dataclass(frozen=True)
class Gap:
    """Whose gap: names of three settings."""

    emulation: str
    small: str
    tuned: str

    @classmethod
    def parse(cls, text: str) -> "Gap":
        """Read `EMULATION,SMALL,TUNED`.

        Raises:
            StudyError: These are not three names.
        """
        names = [part.strip() for part in text.split(",")]
        if len(names) != 3 or not all(names):
            raise StudyError(f"gap {text!r}: expected three settings' names, EMULATION,SMALL,TUNED")
        return cls(*names)


@dataclass(frozen=True, kw_only=True)
class GapClosed:
    """(emulation − small) / (tuned − small) by one metric; 1 is as good as the truly fine-tuned model.

    Attributes:
        gap: the three settings.
        metric: its name.
        emulation: the emulation's mean, over the prompts that count for all three.
        small: the small expert's.
        tuned: the truly fine-tuned large model's.
        closed: the share closed, with its 95 % interval; NaN where the gap is 0.
        doubtful: the interval of tuned − small contains 0, or there are too few prompts for one: there may be no gap to
            close, and the share says little.
    """

    gap: Gap
    metric: str
    emulation: float
    small: float
    tuned: float
    closed: Estimate
    doubtful: bool


def close_gaps(bootstrap: Bootstrap, gap: Gap, metrics: Sequence[str]) -> list[GapClosed]:
    """The gap by each of the metrics that count any prompt.

    Raises:
        StudyError: A setting is not known.
    """
    return [
        found for metric in metrics if not math.isnan((found := _close(bootstrap, gap, metric)).emulation)
    ]


def _close(bootstrap: Bootstrap, gap: Gap, metric: str) -> GapClosed:
    names = (gap.emulation, gap.small, gap.tuned)
    values, resampled = bootstrap.paired(metric, names)
    prompts = values.shape[1]
    emulation, small, tuned = values.mean(axis=1).tolist() if prompts else [math.nan] * 3
    gaps = resampled[:, 2] - resampled[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (resampled[:, 0] - resampled[:, 1]) / gaps
    low, high = interval(np.where(np.isfinite(shares), shares, np.nan))
    ends = SignFlips.of(values[2] - values[1], bootstrap.repeats, bootstrap.seed).interval(LEVEL)
    closed = (emulation - small) / (tuned - small) if tuned != small else math.nan
    return GapClosed(
        gap=gap,
        metric=metric,
        emulation=emulation,
        small=small,
        tuned=tuned,
        closed=Estimate(closed, low, high, prompts),
        doubtful=not (ends[0] > 0 or ends[1] < 0),
    )
