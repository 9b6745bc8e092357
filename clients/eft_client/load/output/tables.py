"""The tables, for the terminal and for the report: rows of targets, one table a load."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eft_client.load.records import INTERRUPTED
from eft_client.load.statistics.comparison import COMPARED, Comparison, Outcome
from eft_client.load.statistics.measures import FIGURES
from eft_client.text import printable

__all__ = ["Rows", "error_rows", "figure_rows", "print_tables", "ratio_rows"]

_DECIMALS = {figure.name: figure.decimals for figure in FIGURES}
#: What the first table shows; the report's details have all figures.
_SHOWN = (
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
    "itl_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "e2e_scheduled_ms_p50",
    "e2e_scheduled_ms_p99",
)


@dataclass(frozen=True)
class Rows:
    """A table: the names of its columns and its cells, the first of each row a name."""

    header: list[str]
    rows: list[list[str]]


def figure_rows(comparison: Comparison, load: str, names: Sequence[str] = _SHOWN) -> Rows:
    """Figures that exist under one load, figure by figure down and target by target across."""
    outcomes = comparison.under(load)
    titles = comparison.titles()
    rows = [
        [titles[name], *(_spread(outcome, name) for outcome in outcomes)]
        for name in names
        if any(outcome.spread(name) for outcome in outcomes)
    ]
    counts = ["completed / failed", *(_counts(outcome) for outcome in outcomes)]
    return Rows(["", *(outcome.target for outcome in outcomes)], [counts, *rows])


def ratio_rows(comparison: Comparison, load: str) -> Rows | None:
    """Ratios to the baseline under one load; None where there is nothing to compare."""
    baseline = comparison.baseline(load)
    others = [outcome for outcome in comparison.under(load) if outcome is not baseline]
    if not baseline or not others:
        return None
    titles = comparison.titles()
    rows = []
    for name in COMPARED:
        spreads = [outcome.ratios(baseline, name) for outcome in others]
        if any(spreads):
            rows.append(
                [titles[name].split(", ")[0], *(spread.text(2) if spread else "–" for spread in spreads)]
            )
    return Rows([f"× {baseline.target}", *(outcome.target for outcome in others)], rows)


def error_rows(comparison: Comparison) -> Rows | None:
    """Failures by kind, with the first message of each; None where nothing failed."""
    rows = []
    for outcome in comparison.outcomes:
        for kind, count in sorted(outcome.errors.items()):
            message = next((r.message for r in outcome.records if r.error == kind and r.message), "")
            rows.append([outcome.target, outcome.load, kind, str(count), message])
    return Rows(["target", "load", "why", "requests", "the first one's message"], rows) if rows else None


def print_tables(comparison: Comparison, console: Console) -> None:
    """Print every load's figures and ratios, and the failures."""
    for load in dict.fromkeys(outcome.load for outcome in comparison.outcomes):
        _print(figure_rows(comparison, load), load, console)
        if ratios := ratio_rows(comparison, load):
            _print(ratios, f"{load}, ratios", console)
    if failures := error_rows(comparison):
        _print(failures, "not completed", console)


def _print(rows: Rows, title: str, console: Console) -> None:
    table = Table(title=Text(printable(title)), title_justify="left")
    for number, name in enumerate(rows.header):
        table.add_column(Text(printable(name)), justify="right" if number else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _spread(outcome: Outcome, name: str) -> str:
    spread = outcome.spread(name)
    return spread.text(_DECIMALS[name]) if spread else "–"


def _counts(outcome: Outcome) -> str:
    over = sum(outcome.errors.values())
    return f"{len(outcome.records) - over:,} / {over - outcome.errors[INTERRUPTED]:,}"
