"""A study's results in cells, for the terminal and for the page alike."""

import math
from collections.abc import Sequence

from eft_client.dynamics.output.words import nats
from eft_client.dynamics.summary import AxisSummary, SideSummary
from eft_client.dynamics.texts.kinds import kind_named, label_of
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["SIGN_HEADER", "influence_rows", "level_rows", "sign_rows", "step_header", "step_rows"]

SIGN_HEADER = ("sign of squeezing", "change", "holds")

_COLUMNS = (
    ("chosen", "total", "chosen"),
    ("rejected", "total", "rejected"),
    ("chosen", "argmax", "argmax along chosen"),
)


def step_header(one: AxisSummary) -> list[str]:
    """Of `step_rows`."""
    return [one.axis.label, *(label for kind, _, label in _columns(one.deciding)), "margin", "accuracy"]


def step_rows(one: AxisSummary, side: SideSummary) -> list[list[str | None]]:
    """A row for each step: the levels that matter most, the margin and the accuracy, which begin with the second."""
    return [
        [
            f"{step.x:g}",
            *(_cell(side.levels[kind, name][place]) for kind, name, _ in _columns(side)),
            _cell(side.margin[place]) if side.margin and place else None,
            _cell(side.accuracy[place]) if side.accuracy and place else None,
        ]
        for place, step in enumerate(one.axis.steps)
    ]


def level_rows(side: SideSummary, quantity: str) -> list[list[str | None]]:
    """A row for each kind of text, a column for each step."""
    return [
        [kind_named(kind).label, *(_cell(found) for found in side.levels[kind, quantity])]
        for kind in side.kinds
    ]


def influence_rows(side: SideSummary) -> list[list[str | None]]:
    """A row for each kind: its change from the first step to the last, and the accumulated normalised influence."""
    return [
        [label_of(kind), _signed(found.total), _cell(found.accumulated, digits=3)]
        for kind, found in side.influence.items()
    ]


def sign_rows(side: SideSummary) -> list[list[str | None]]:
    """The four signs, and then each of the texts whose fall is the fourth."""
    rows: list[list[str | None]] = [
        [sign.name, _signed(sign.change), "yes" if sign.holds else "no"] for sign in side.squeezing.signs
    ]
    for kind, change in side.squeezing.others.items():
        rows.append([f"  {kind_named(kind).label}", _signed(change), "yes" if change.high < 0 else "no"])
    return rows


def _columns(side: SideSummary) -> Sequence[tuple[str, str, str]]:
    return [column for column in _COLUMNS if column[:2] in side.levels]


def _cell(one: Estimate, digits: int = 2) -> str | None:
    if math.isnan(one.value):
        return None
    return f"{one.value:.{digits}f} ({one.low:.{digits}f} to {one.high:.{digits}f})".replace("-", "−")


def _signed(one: Estimate) -> str | None:
    return None if math.isnan(one.value) else nats(one)
