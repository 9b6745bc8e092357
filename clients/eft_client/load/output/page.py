"""The report: the tables, the figures and how to read them, on one page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eft_client.load.arrivals import is_open
from eft_client.load.output.plots import draw_latencies, draw_throughput, draw_timeline
from eft_client.load.output.summary import as_json
from eft_client.load.output.tables import error_rows, figure_rows, ratio_rows
from eft_client.load.statistics.comparison import Comparison
from eft_client.load.statistics.measures import FIGURES
from eft_client.report import Blocks, Page

__all__ = ["Written", "write_report"]

DEFINITIONS = (
    "All figures are derived from raw.jsonl, which holds the time stamps of every request. Times are taken when the "
    "client reads; a request begins just before it is sent. Warm-up requests count nowhere, and failed ones in no "
    "latency and no throughput.",
    "TTFT is the time to the first piece of output, end to end that to the last one, TPOT (end to end − TTFT) / "
    "(output tokens − 1). ITL is the gap between one piece of output and the next: where a server speculates or sends "
    "several tokens together, a piece holds several (“tokens a piece”), and TPOT is the time of one token.",
    "In open loops, “from schedule” is the same from the time at which a request was to be sent: what this client sent "
    "late has waited already, as a client that arrives then would have.",
    "Tokens are the server's own counts. Rates are over a round's duration, from its start to the end of its last "
    "request. Goodput counts the requests that kept every limit.",
    "A cell is the median over the repeats with the lowest and the highest. Ratios are taken within a repeat, in which "
    "all targets had prompts of the same lengths and, in open loops, the same arrivals.",
)


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    page: Path
    summary: Path


def write_report(comparison: Comparison, folder: Path) -> Written:
    """Write report.html and summary.json into a folder."""
    written = Written(folder / "report.html", folder / "summary.json")
    page = _page(comparison)
    page.write(written.page)
    written.summary.write_text(as_json(comparison), encoding="utf-8")
    return written


def _page(comparison: Comparison) -> Page:
    header = comparison.header
    page = Page("Serving performance", f"{', '.join(header.contestants)} · {header.when}")
    page.text(*_in_words(comparison))
    if not any(outcome.figures for outcome in comparison.outcomes):
        return page.text("The run ended before a request of any round did.")
    page.figure(
        draw_throughput(comparison),
        "Throughput under every load: the median over the repeats, with the lowest and the highest.",
    )
    for load in dict.fromkeys(outcome.load for outcome in comparison.outcomes):
        _add_load(page, comparison, load)
    if failures := error_rows(comparison):
        page.heading("Not completed").table(failures.header, failures.rows)
    page.details("How the figures are defined", Blocks().text(*DEFINITIONS))
    page.details("All figures of every round", _every_round(comparison))
    return page.details("The run", _the_run(comparison))


def _in_words(comparison: Comparison) -> Iterator[str]:
    header = comparison.header
    repeats = max((len(outcome.rounds) for outcome in comparison.outcomes), default=0)
    yield (
        f"{len(header.contestants)} target{'s'[: len(header.contestants) > 1]}, "
        f"{repeats} repeat{'s'[: repeats != 1]} of each under {', '.join(header.loads)}; baseline {header.baseline}."
    )
    if header.limits:
        limits = ", ".join(f"{name[:-3].upper()} ≤ {limit:g} ms" for name, limit in header.limits.items())
        yield f"Goodput counts requests with {limits}."


def _add_load(page: Page, comparison: Comparison, load: str) -> None:
    figures = figure_rows(comparison, load)
    page.heading(load[:1].upper() + load[1:])
    page.table(figures.header, figures.rows, "Median over the repeats (lowest to highest).")
    if ratios := ratio_rows(comparison, load):
        page.table(ratios.header, ratios.rows, "Ratios to the baseline, repeat by repeat.")
    dashed = " Dashed: from the scheduled time." if is_open(load) else ""
    page.figure(
        draw_latencies(comparison, load),
        "How latencies are distributed, all repeats together: the share of observations that took no longer. "
        f"The slowest half percent may lie beyond the edge.{dashed}",
    )
    page.figure(draw_timeline(comparison, load), "The last repeat over time.")


def _every_round(comparison: Comparison) -> Blocks:
    blocks = Blocks()
    titles = comparison.titles()
    for outcome in comparison.outcomes:
        header = ["", *(f"repeat {repeat + 1}" for repeat in outcome.figures)]
        rows = [
            [
                figure.title,
                *(_shown(each[figure.name], figure.decimals) for each in outcome.figures.values()),
            ]
            for figure in FIGURES
            if figure.name in titles
        ]
        blocks.table(header, rows, f"{outcome.target}, {outcome.load}")
    return blocks


def _the_run(comparison: Comparison) -> Blocks:
    header = comparison.header
    asked = [[name, asks] for name, asks in header.contestants.items()]
    workload = [[name, str(value)] for name, value in header.workload.items()]
    return (
        Blocks()
        .code(header.command)
        .table(["target", "asks"], asked)
        .table(["workload", ""], [*workload, ["machine", header.machine]])
    )


def _shown(value: float | None, decimals: int) -> str | None:
    return None if value is None else f"{value:,.{decimals}f}"
