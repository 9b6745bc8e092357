"""Everything that the terminal, the page and the JSON say."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_client.jsonl import finite_only
from eft_client.probe.changes import Changes
from eft_client.probe.examples import Examples
from eft_client.probe.store import Wanted
from eft_client.probe.summary import Verdict, sentence

__all__ = ["ProbeReport", "as_json"]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What was found, and of what.

    Attributes:
        examples: the data.
        wanted: what was collected.
        verdicts: one for each target.
        changes: how much each layer's parameters changed; None where the checkpoints are not here.
        settings: of the probes, for readers.
        notes: what concerns all targets.
    """

    examples: Examples
    wanted: Wanted
    verdicts: Sequence[Verdict]
    changes: Changes | None
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()


def as_json(report: ProbeReport, command: str) -> str:
    """The report for programs; what is not a number is null."""
    document = {
        "command": command,
        "collected": dataclasses.asdict(report.wanted),
        "settings": dict(report.settings),
        "prompts": report.examples.prompts,
        "texts": len(report.examples.texts),
        "notes": list(report.notes),
        "parameters_changed": report.changes and dataclasses.asdict(report.changes),
        "targets": [_target(verdict) for verdict in report.verdicts],
    }
    return json.dumps(finite_only(document), indent=1, ensure_ascii=False) + "\n"


def _target(verdict: Verdict) -> dict[str, Any]:
    problem = verdict.problem
    return {
        "target": problem.target,
        "kind": problem.kind,
        "rows": problem.rows,
        "prompts": problem.prompts,
        "sentence": sentence(verdict),
        "warnings": list(verdict.warnings),
        "measures": [dataclasses.asdict(measure) for measure in problem.measures],
        "estimates": [
            {"measure": measure, "source": source, **dataclasses.asdict(one)}
            for (measure, source), one in verdict.estimates.items()
        ],
        "differences": [
            {"measure": measure, "control": control, **dataclasses.asdict(one)}
            for (measure, control), one in verdict.differences.items()
        ],
        "layers": [
            {
                "source": source,
                "layer": layer,
                "chosen": 0
                if source not in verdict.finding.probed
                else verdict.finding.probed[source].often(layer),
                **dataclasses.asdict(one),
            }
            for (source, layer), one in verdict.by_layer.items()
        ],
    }
