"""The figures as JSON, for programs."""

import json
from dataclasses import asdict
from typing import Any

from eft_client.load.statistics.comparison import COMPARED, Comparison, Outcome, Spread

__all__ = ["as_json"]


def as_json(comparison: Comparison) -> str:
    """The run, every figure of every round, their spread over the repeats, and the ratios to the baseline."""
    document = {
        "run": asdict(comparison.header),
        "outcomes": [_outcome(one, comparison) for one in comparison.outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _outcome(outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    baseline = comparison.baseline(outcome.load)
    return {
        "load": outcome.load,
        "contestant": outcome.target,
        "errors": dict(outcome.errors),
        "figures": {name: _spread(outcome.spread(name)) for name in comparison.titles()},
        "ratios": {
            name: _spread(outcome.ratios(baseline, name))
            for name in COMPARED
            if baseline and outcome is not baseline
        },
        "rounds": [{"repeat": repeat, **figures} for repeat, figures in outcome.figures.items()],
    }


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return asdict(spread) if spread else None
