"""`eft dynamics`: conduct the study, show its progress, write its files and print what it says."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.groups import grouped, joined
from eft_client.dynamics.options import DynamicsOptions, DynamicsPlan, planned
from eft_client.dynamics.output.page import as_page
from eft_client.dynamics.output.tables import step_header, step_rows
from eft_client.dynamics.output.words import sentences
from eft_client.dynamics.resume import require_same_study
from eft_client.dynamics.study import DynamicsFindings, conduct
from eft_client.dynamics.summary import DynamicsSummary, as_json, summarise
from eft_client.pairs.engine import opened
from eft_client.pairs.pair import as_line
from eft_client.pairs.results import make_folder
from eft_client.progress import Progress
from eft_client.quality.journal import Journal
from eft_client.report.terminal import as_table
from eft_client.settings import sweep

__all__ = ["run"]

_MOST_SCORES = 1 << 22
_LARGEST_TOTAL = 100.0


def run(
    options: DynamicsOptions, console: Console, transport: httpx.AsyncBaseTransport | None = None
) -> DynamicsSummary:
    """Conduct the study, write its files and print what it says.

    Args:
        options: the command's.
        console: where sentences and tables go.
        transport: what carries requests in place of the network, for tests.

    Raises:
        EftError: Something that was given is wrong, or the engine or the server does not do what the study needs.
    """
    plan = planned(options)
    command = shlex.join(["eft", *sys.argv[1:]])
    make_folder(options.output, DynamicsError)
    with Journal(options.output / "scores.jsonl") as journal:
        require_same_study(journal, plan, None)
        findings = _conducted(plan, journal, transport)
    with Progress() as watcher:
        step = watcher.begin("resampling and drawing", 2)
        summary = summarise(findings)
        step()
        said = sentences(summary)
        _write(summary, command, said)
        step()
    for one in summary.axes:
        console.print(as_table(step_header(one), step_rows(one, one.deciding)))
    for sentence in said:
        console.print(Text(sentence))
    console.print(Text(f"{options.output}: report.html, summary.json, scores.jsonl"))
    return summary


def _conducted(
    plan: DynamicsPlan, journal: Journal, transport: httpx.AsyncBaseTransport | None
) -> DynamicsFindings:
    """Conduct the study by one engine or server, or by one engine for each group of checkpoints."""
    options, found = plan.options, list[DynamicsFindings]()
    own = () if options.url is not None else tuple(_bounds(options))
    for part in [()] if options.group is None else grouped(plan, options.group):
        overrides = (*own, *part, *options.overrides)
        opening = opened(
            options.family, options.url, overrides, api_key_env=options.api_key_env, transport=transport
        )
        with opening as client, Progress() as watcher:
            found.append(conduct(plan, client, journal, watcher))
    return found[0] if len(found) == 1 else joined(found)


def _bounds(options: DynamicsOptions) -> Iterator[str]:
    """An engine that serves nobody else takes as many scores at once, and as large weights, as the study has."""
    yield f"server.max_scores={_MOST_SCORES}"
    if options.over:
        largest = max(max(setting.sweep.values()) for text in options.over for setting in sweep(text))
        for name in ("weight", "scale"):
            yield f"limits.{name}.max={max(largest, 2.0)}"
        yield f"limits.total={_LARGEST_TOTAL}"


def _write(summary: DynamicsSummary, command: str, said: list[str]) -> None:
    folder = summary.findings.plan.options.output
    (folder / "summary.json").write_text(as_json(summary, command, said), encoding="utf-8", errors="replace")
    as_page(summary, command).write(folder / "report.html")
    if summary.findings.plan.options.rephrase:
        _write_rephrased(folder, summary.findings)


def _write_rephrased(folder: Path, findings: DynamicsFindings) -> None:
    """The pairs with their rephrases, in the form of `--data` and `--held-out`."""
    for side, pairs in findings.pairs.items():
        lines = [json.dumps(as_line(pair), ensure_ascii=False) for pair in pairs]
        (folder / f"rephrased-{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
