"""The page of a probe: the finding in words, warnings, tables, the figure, and how everything was measured."""

from eft_client.probe.output.figures import draw_by_layer
from eft_client.probe.output.tables import (
    DIFFERENCE_HEADER,
    difference_rows,
    estimate_header,
    estimate_rows,
    layer_header,
    layer_rows,
)
from eft_client.probe.report import ProbeReport
from eft_client.probe.statistics.folds import INNER_FOLDS
from eft_client.probe.statistics.problem import TargetKind
from eft_client.probe.summary import Verdict, sentence
from eft_client.report import Blocks, Page

__all__ = ["as_page"]

_PROBES = {
    TargetKind.NUMBER: "ridge regression",
    TargetKind.CLASS: "logistic regression",
    TargetKind.PAIR: "logistic regression through the origin on the difference of the two answers, in both directions",
}
_MEANING = (
    "The finding is the difference. A probe of any model can read much from activations that only say which tokens "
    "were read, and a pre-trained model can tell a good answer from a bad one to some degree. What fine-tuning put "
    "into the expert is what its activations carry beyond its reference's; what is more than wording, beyond a bag of "
    "tokens. That a probe can read something does not say that the model acts on it.",
)
_METHOD = (
    "Cross-validated by prompt: all rows of a prompt are in one fold, and prompts that are the same count as one. "
    f"Penalty and layer are chosen by {INNER_FOLDS} inner folds of the training rows, by prompt, too, so without a "
    "look at the rows that they are judged by. Features are standardised by the training rows. Pairs of rows are "
    "compared within folds only.",
    "Intervals are 95 % percentile intervals of a bootstrap over prompts, the same resamples for all, widened for the "
    "training rows that folds share (Nadeau & Bengio, 2003). Differences are paired. Where no row is wrong, there is "
    "nothing to resample, and the interval is Wilson's.",
    "Shuffled targets: the expert's probes with their layers, penalties and folds, fitted and judged by targets that "
    "were shuffled (of pairs, a coin says which is the chosen one). The mean over the shuffles with Student's "
    "interval. The page warns where that of 99 % excludes chance.",
    "A bag of tokens: counts of the completion's token ids; of a single token its id, and counts of those up to it.",
)


def as_page(report: ProbeReport, command: str) -> Page:
    """The whole report."""
    wanted = report.wanted
    page = Page(
        f"What {wanted.expert}'s activations carry",
        f"{report.examples.prompts:,} prompts, {len(report.examples.texts):,} texts; {wanted.expert} against "
        f"{wanted.reference}; {wanted.site}, pool {wanted.pool}",
    )
    page.text(*(sentence(verdict) for verdict in report.verdicts), *report.notes)
    for verdict in report.verdicts:
        _target(page, report, verdict)
    page.heading("What this means").text(*_MEANING)
    page.heading("How this was measured").code(command).text(*_METHOD)
    settings = [(name, str(value)) for name, value in report.settings.items()]
    page.table(("what", "value"), settings, "The settings.")
    return page


def _target(page: Page, report: ProbeReport, verdict: Verdict) -> None:
    problem, changes, measure = verdict.problem, report.changes, verdict.measure
    page.heading(problem.target.capitalize()).text(*verdict.warnings)
    meanings = " ".join(f"{one.name}: {one.meaning}." for one in problem.measures)
    page.text(f"{problem.rows:,} rows of {problem.prompts:,} prompts; {_PROBES[problem.kind]}. {meanings}")
    caption = "Rows that no probe had seen, with 95 % intervals."
    page.table(estimate_header(verdict), estimate_rows(verdict), caption)
    page.table(DIFFERENCE_HEADER, difference_rows(verdict), "Differences, paired by prompt.")
    page.figure(draw_by_layer(verdict, changes), f"{measure.name} by layer, with 95 % intervals.")
    caption = (
        f"{measure.name} by layer. To take the best row of these is to peek; the table above has not peeked."
    )
    if changes is not None:
        caption += f" Parameters changed: {changes.meaning}."
    page.details("By layer", Blocks().table(layer_header(changes), layer_rows(verdict, changes), caption))
