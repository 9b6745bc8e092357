"""The page of a study: recommendation, tables, figures, examples, and how everything was measured."""

import math
from collections.abc import Iterable, Sequence

from eft_client.quality.metrics import Metric
from eft_client.quality.output.figures import draw_along, draw_frontier, swept_expert
from eft_client.quality.output.tables import (
    COMPARISON_HEADER,
    GAP_HEADER,
    SPLIT_HEADER,
    comparison_rows,
    estimate_rows,
    frontier_rows,
    gap_rows,
    recommendation,
    split_rows,
    unit,
    with_interval,
)
from eft_client.quality.summary import Summary
from eft_client.report import Blocks, Cell, Page

__all__ = ["write_report"]

METRICS_A_TABLE = 4
EXAMPLES = 12
MAX_EXAMPLE_CHARS = 1000

_METHOD = (
    "Intervals are 95 % percentile intervals of a paired bootstrap over prompts (all settings see the same resamples); "
    "where every prompt has the same value, 0 or 1, they are Wilson's. They say how far the mean over prompts like "
    "these may be off, not what another judge would have said.",
    "Diversity across inputs belongs to the set of prompts; its intervals come from the jackknife over prompts.",
    "Differences are over the prompts that count for both. Their intervals, each for just one comparison, and their "
    "p-values, two-sided and adjusted by Holm's method for all settings that were compared by the same metric, come "
    "from flipping the signs of the prompts' differences; there are none below six prompts. A win is a prompt at which "
    "the setting's mean is better than the baseline's; the win rate counts ties half.",
    "Of resamples: the share of resamples in which no other candidate is at least as good by both metrics and better "
    "by one.",
)


def write_report(summary: Summary, command: str) -> None:
    """Write `report.html` into the study's folder."""
    findings = summary.findings
    sampling = findings.plan.sampling
    page = Page(
        "What the weights do",
        f"{len(summary.settings)} settings, {len(findings.plan.prompts)} prompts, "
        f"{sampling.n} samples each at temperature {sampling.temperature:g}",
    )
    _recommend(page, summary)
    _estimates(page, summary)
    _frontier(page, summary)
    _sweep(page, summary)
    _gaps(page, summary)
    _compare(page, summary)
    _generalise(page, summary)
    _judges(page, summary)
    _examples(page, summary)
    _method(page, summary, command)
    page.write(findings.plan.folder / "report.html")


def _recommend(page: Page, summary: Summary) -> None:
    if summary.choice:
        page.text(recommendation(summary.choice))
    for note in summary.findings.notes:
        page.text(note)


def _estimates(page: Page, summary: Summary) -> None:
    page.heading("Metrics")
    for metrics in _portions(summary.measured, METRICS_A_TABLE):
        header = ["setting", *(unit(metric) for metric in metrics)]
        page.table(header, estimate_rows(summary, metrics), "Means over prompts with 95 % intervals.")


def _frontier(page: Page, summary: Summary) -> None:
    if summary.frontier is None:
        return
    x, y = summary.frontier.x.name, summary.frontier.y.name
    page.heading(f"{x.capitalize()} against {y}")
    figure = draw_frontier(summary.frontier, summary.others)
    page.figure(
        figure, f"Each candidate by {x} and {y}, with 95 % intervals; those on the frontier are named."
    )
    header, rows = frontier_rows(summary)
    chosen = summary.choice.setting if summary.choice else None
    marked = [index for index, row in enumerate(rows) if row[0] == chosen]
    page.table(header, rows, "The candidates.", emphasised=marked)


def _sweep(page: Page, summary: Summary) -> None:
    expert = swept_expert(summary)
    if expert is None:
        return
    page.heading("Along the sweep")
    for metrics, what in _groups(summary.measured):
        page.figure(
            draw_along(summary, metrics, expert), f"{what} along the weight of {expert}, 95 % intervals."
        )


def _groups(metrics: Sequence[Metric]) -> Iterable[tuple[list[Metric], str]]:
    """Metrics that share an axis: shares; each measure of diversity; every other metric by itself."""
    shares = [metric for metric in metrics if metric.share]
    if shares:
        yield shares, "Shares"
    rest: dict[str, list[Metric]] = {}
    for metric in metrics:
        if not metric.share:
            rest.setdefault(metric.name.partition(".")[0], []).append(metric)
    for name, group in rest.items():
        yield group, name


def _gaps(page: Page, summary: Summary) -> None:
    if summary.gaps:
        gaps = dict.fromkeys(one.gap for one in summary.gaps)
        named = "; ".join(f"{gap.emulation}: {gap.small} to {gap.tuned}" for gap in gaps)
        caption = f"(emulation − small expert) / (truly fine-tuned − small expert). {named}."
        page.heading("The gap closed").table(GAP_HEADER, gap_rows(summary), caption)


def _compare(page: Page, summary: Summary) -> None:
    rows = comparison_rows(summary)
    if rows:
        page.heading(f"Against {summary.findings.plan.baseline}")
        page.table(
            COMPARISON_HEADER, rows, f"Differences from {summary.findings.plan.baseline}, paired by prompt."
        )


def _generalise(page: Page, summary: Summary) -> None:
    if summary.splits:
        page.heading("In and out of the fine-tuning distribution")
        page.table(SPLIT_HEADER, split_rows(summary), "By the prompts' tag `distribution`.")
    shares = {metric.name: metric.share for metric in summary.measured}
    for (name, value), estimates in summary.parts.items():
        rows = [
            [setting, *(with_interval(estimates[metric, setting], share=shares[metric]) for metric in shares)]
            for setting in summary.settings
        ]
        header = ["setting", *(unit(metric) for metric in summary.measured)]
        page.details(f"Only {name}={value}", Blocks().table(header, rows, f"Prompts with {name}={value}."))


def _judges(page: Page, summary: Summary) -> None:
    if not summary.findings.agreements:
        return
    rows: list[list[Cell]] = [
        [
            name,
            one.pairs,
            _percent(one.disagreement),
            _percent(one.first_preferred),
            one.unreadable,
            one.equal,
        ]
        for name, one in summary.findings.agreements.items()
    ]
    header = ("judge", "pairs", "orders disagree", "first preferred", "unreadable", "equal")
    page.heading("How the judges agree with themselves")
    page.table(header, rows, "Every pair was judged in both orders; 50 % first preferred is fair.")


def _percent(share: float) -> str | None:
    return None if math.isnan(share) else f"{100 * share:.1f} %"


def _examples(page: Page, summary: Summary) -> None:
    """A few prompts with the first answer of every setting, spread over the file."""
    prompts = summary.findings.plan.prompts
    examples = Blocks()
    for prompt in prompts[:: max(1, len(prompts) // EXAMPLES)][:EXAMPLES]:
        rows = [
            (setting, summary.findings.answers[setting, prompt.id][0].text[:MAX_EXAMPLE_CHARS])
            for setting in summary.settings
        ]
        examples.table(("setting", "first answer"), rows, prompt.text[:MAX_EXAMPLE_CHARS])
    page.heading("Examples").details("First answers to some of the prompts", examples)


def _method(page: Page, summary: Summary, command: str) -> None:
    page.heading("How this was measured").code(command).text(*_METHOD)
    rows = [
        (metric.name, metric.meaning, metric.counts, "higher" if metric.higher_is_better else "lower")
        for metric in summary.measured
    ]
    page.table(("metric", "what it is", "over", "better"), rows, "The metrics.")
    settings = [
        (setting.name, setting.model, setting.url, str(dict(setting.eft)) if setting.eft else None)
        for setting in summary.findings.plan.settings
    ]
    page.table(("setting", "model", "server", "eft"), settings, "The settings.")


def _portions(metrics: Sequence[Metric], size: int) -> Iterable[Sequence[Metric]]:
    for start in range(0, len(metrics), size):
        yield metrics[start : start + size]
