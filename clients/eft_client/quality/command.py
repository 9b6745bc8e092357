"""`eft bench quality`: conduct the study, show its progress, write its files and print its tables."""

import asyncio
import shlex
import sys

import httpx
from rich.console import Console
from rich.text import Text

from eft_client.exits import require_bench
from eft_client.progress import Progress
from eft_client.quality.options import StudyOptions, planned
from eft_client.quality.output.tables import (
    GAP_HEADER,
    estimate_rows,
    frontier_rows,
    gap_rows,
    recommendation,
    unit,
)
from eft_client.quality.servers import Servers
from eft_client.quality.study import Findings, Plan, conduct
from eft_client.quality.summary import Summary, as_json, summarise

__all__ = ["run"]

METRICS_A_TABLE = 4


def run(
    options: StudyOptions, console: Console, transport: httpx.AsyncBaseTransport | None = None
) -> Summary:
    """Conduct the study, write its files and print its tables.

    Args:
        options: the command's.
        console: where tables, and on a terminal the progress, go.
        transport: what carries requests in place of the network, for tests.

    Raises:
        StudyError: Something that was given is wrong, or a server does not do what the study needs.
        EftError: A server does not answer.
        SettingError: A setting cannot be read.
    """
    plan, questions = planned(options)
    require_bench()
    from eft_client.quality.output.page import write_report

    command = shlex.join(["eft", "bench", "quality", *sys.argv[3:]])
    with Progress() as watcher:
        findings = asyncio.run(_conducted(plan, watcher, options.timeout_s, transport))
        step = watcher.begin("resampling", 1)
        summary = summarise(findings, questions)
        step(1)
    folder = options.output
    (folder / "summary.json").write_text(as_json(summary, command), encoding="utf-8", errors="replace")
    write_report(summary, command)
    _print(summary, console)
    console.print(Text(f"{folder}: report.html, summary.json, generations.jsonl, verdicts.jsonl"))
    return summary


async def _conducted(
    plan: Plan, watcher: Progress, timeout_s: float, transport: httpx.AsyncBaseTransport | None
) -> Findings:
    async with Servers(timeout_s=timeout_s, transport=transport) as servers:
        return await conduct(plan, servers, watcher)


def _print(summary: Summary, console: Console) -> None:
    """The tables that fit a terminal; the page has the rest."""
    from eft_client.report.terminal import as_table

    for start in range(0, len(summary.measured), METRICS_A_TABLE):
        metrics = summary.measured[start : start + METRICS_A_TABLE]
        header = ["setting", *(unit(metric) for metric in metrics)]
        console.print(as_table(header, estimate_rows(summary, metrics)))
    if summary.frontier is not None:
        console.print(as_table(*frontier_rows(summary)))
    if summary.gaps:
        console.print(as_table(GAP_HEADER, gap_rows(summary)))
    for name, agreement in summary.findings.agreements.items():
        console.print(Text(f"{name}: {agreement}"))
    if summary.choice:
        console.print(Text(recommendation(summary.choice)))
