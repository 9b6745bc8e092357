"""A probe's results in cells, for the terminal and for the page alike."""

from eft_client.probe.changes import Changes
from eft_client.probe.summary import EXPERT, REFERENCE, SHUFFLED, TOKENS, Verdict
from eft_client.quality.output.tables import with_interval
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = [
    "DIFFERENCE_HEADER",
    "difference_rows",
    "estimate_header",
    "estimate_rows",
    "layer_header",
    "layer_rows",
    "named",
]

DIFFERENCE_HEADER = ("expert less", "measure", "difference", "95 % interval")
_NAMES = {
    EXPERT: "expert's activations",
    REFERENCE: "reference's activations",
    TOKENS: "bag of tokens",
    SHUFFLED: "expert's, targets shuffled",
}


def named(source: str) -> str:
    """A source as tables and figures call it."""
    return _NAMES.get(source, source)


def estimate_header(verdict: Verdict) -> list[str]:
    """The columns of `estimate_rows`."""
    return ["probed", *(measure.name for measure in verdict.problem.measures), "layers that the folds chose"]


def estimate_rows(verdict: Verdict) -> list[list[str | None]]:
    """A row for each source: every measure with its interval, and the layers that the inner folds chose."""
    measures = verdict.problem.measures
    return [
        [
            named(source),
            *(with_interval(verdict.estimates[measure.name, source], share=False) for measure in measures),
            _chosen(verdict, source),
        ]
        for source in (*verdict.finding.probed, SHUFFLED)
    ]


def difference_rows(verdict: Verdict) -> list[list[str | None]]:
    """A row for each control and measure, as DIFFERENCE_HEADER has it."""
    return [
        [named(control), measure, f"{one.value:+.3f}", _range(one)]
        for (measure, control), one in verdict.differences.items()
    ]


def layer_header(changes: Changes | None) -> list[str]:
    """The columns of `layer_rows`."""
    changed = [] if changes is None else ["parameters changed"]
    return ["layer", named(EXPERT), named(REFERENCE), named(SHUFFLED), "chosen by folds", *changed]


def layer_rows(verdict: Verdict, changes: Changes | None) -> list[list[str | None]]:
    """A row for each layer of the expert."""
    expert = verdict.finding.probed[EXPERT]
    return [
        [
            str(layer),
            *(
                with_interval(verdict.by_layer[source, layer], share=False)
                for source in (EXPERT, REFERENCE, SHUFFLED)
            ),
            f"{expert.often(layer)} of {len(expert.chosen)}",
            *([] if changes is None else [_changed(changes, layer)]),
        ]
        for layer in expert.by_layer
    ]


def _changed(changes: Changes, layer: int) -> str | None:
    share = changes.by_layer.get(layer)
    if share is None:
        return None
    return f"{100 * share:.2f} %{' (among the most)' if layer in changes.most else ''}"


def _chosen(verdict: Verdict, source: str) -> str | None:
    if source in (TOKENS, SHUFFLED):
        return None
    probed = verdict.finding.probed[source]
    return ", ".join(f"{layer} ({probed.often(layer)}×)" for layer in sorted(set(probed.chosen)))


def _range(one: Estimate) -> str:
    return f"{one.low:.3f} to {one.high:.3f}"
