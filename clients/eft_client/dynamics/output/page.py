"""The page of a study: sentences, figures, tables, texts, and how everything was measured."""

from collections.abc import Iterable

from eft_client.dynamics.measures import QUANTITIES
from eft_client.dynamics.output.figures import (
    draw_changes,
    draw_influence,
    draw_levels,
    draw_margin,
    draw_signs,
    draw_squeezing,
)
from eft_client.dynamics.output.tables import (
    SIGN_HEADER,
    influence_rows,
    level_rows,
    sign_rows,
    step_header,
    step_rows,
)
from eft_client.dynamics.output.words import in_words, notes
from eft_client.dynamics.summary import AxisSummary, DynamicsSummary, SideSummary
from eft_client.dynamics.texts.kinds import KINDS, kind_named
from eft_client.dynamics.texts.text import places
from eft_client.report import Blocks, Page

__all__ = ["as_page"]

EXAMPLES = 6
MAX_EXAMPLE_CHARS = 600

_METHOD = (
    "Every text is scored under every step by teacher forcing: the log-probability of each of its tokens given those "
    "before it, summed; the end of the turn counts where the text ends there. The argmax is the sum of the likeliest "
    "token’s log-probability at the same places: where it rises while the chosen text falls, probability moves to "
    "something that is not the text.",
    "Intervals are 95 % percentile intervals of a bootstrap over prompts; all curves of one side see the same "
    "resamples, so a change is taken within them. Curves are not smoothed. Where the highest step is picked out of "
    "several, or the best, the interval of the difference from it holds for all of them at once (Bonferroni).",
    "The margin is that of the implicit reward: how much more the chosen answer gained over the first step than the "
    "rejected one; its accuracy is the share of prompts where it is above 0, ties counting half. The step to serve is "
    "the earliest that is not surely behind the best one, among those before squeezing at which the chosen answers are "
    "not surely less likely than at the first step; where there are none, among those before squeezing, or all.",
    "The normalised influence is a stretch’s root mean square change over the root of ‖A‖ of the text and over ‖p − e‖ "
    "of the chosen answer, both before the stretch.",
)


def as_page(summary: DynamicsSummary, command: str) -> Page:
    """The report."""
    findings = summary.findings
    counted = " and ".join(f"{len(pairs)} {side}" for side, pairs in findings.pairs.items())
    names = ", ".join(one.axis.label for one in summary.axes)
    page = Page("Learning dynamics", f"{summary.axes[0].axis.family}: {counted} prompts, along {names}")
    for one in summary.axes:
        _axis(page, one, findings.plan.options.by)
    page.text(*notes(summary))
    _texts(page, summary)
    _method(page, command)
    return page


def _axis(page: Page, one: AxisSummary, by: str) -> None:
    along = "over training" if one.axis.is_training else f"over the {one.axis.label}"
    page.heading(f"What happened {along}").text(*in_words(one, by))
    for side in one.sides.values():
        chosen = [side.choice.step] if side.choice and side is one.deciding else []
        page.table(
            step_header(one),
            step_rows(one, side),
            f"{_named(side)}: means with 95 % intervals; sums in nats.",
            emphasised=chosen,
        )
    page.heading(f"Curves {along}")
    page.figure(
        draw_changes(one, "total"),
        "Change of the summed log-probability since the first step, with 95 % intervals; a dotted line where squeezing "
        "is sure.",
    )
    page.figure(draw_changes(one, "per_token"), "The same per token.")
    page.figure(draw_levels(one, "total"), "The summed log-probability itself; training prompts dashed.")
    _squeezing(page, one, along)
    if one.deciding.margin:
        page.heading(f"The implicit reward {along}")
        page.figure(draw_margin(one), "Margin and accuracy of chosen over rejected, by side.")
    _influence(page, one, along)
    _levels(page, one)


def _squeezing(page: Page, one: AxisSummary, along: str) -> None:
    page.heading(f"Squeezing {along}")
    page.figure(
        draw_squeezing(one),
        "Above left: the chosen answers, their likeliest continuation, and texts that training has no reason to "
        "touch. The others: how peaky the rows along the chosen answers are; training prompts dashed.",
    )
    for side in one.sides.values():
        peak = one.axis.steps[side.squeezing.peak]
        page.table(
            SIGN_HEADER,
            sign_rows(side),
            f"{_named(side)}: changes from {peak.name} to the last step.",
        )


def _influence(page: Page, one: AxisSummary, along: str) -> None:
    page.heading(f"Influence {along}")
    page.figure(
        draw_signs(one),
        "The sign of each stretch’s change; a dot where its interval contains 0.",
    )
    page.figure(draw_influence(one), "Left: change from the first step to the last. Right: each stretch.")
    header = ("text", "total change, nats", "accumulated normalised influence")
    for side in one.sides.values():
        page.table(header, influence_rows(side), f"{_named(side)}.")


def _levels(page: Page, one: AxisSummary) -> None:
    blocks = Blocks()
    header = ["text", *(f"{step.x:g}" for step in one.axis.steps)]
    for side in one.sides.values():
        for quantity in QUANTITIES:
            caption = f"{_named(side)}: {quantity.meaning}."
            blocks.table(header, level_rows(side, quantity.name), caption)
    page.details(f"Every number along {one.axis.label}", blocks)


def _texts(page: Page, summary: DynamicsSummary) -> None:
    findings, examples = summary.findings, Blocks()
    for side, index in _spread(places(findings.pairs)):
        pair = findings.pairs[side][index]
        rows = [
            (kind_named(text.kind).label, text.completion[:MAX_EXAMPLE_CHARS])
            for text in findings.texts[side, index]
            if isinstance(text.completion, str)
        ]
        examples.table(("text", "what it is"), rows, f"{side}: {pair.question[:MAX_EXAMPLE_CHARS]}")
    page.heading("The texts").details("Some prompts with their texts", examples)


def _spread(found: list[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    return found[:: max(1, len(found) // EXAMPLES)][:EXAMPLES]


def _method(page: Page, command: str) -> None:
    page.heading("How this was measured").code(command).text(*_METHOD)
    page.table(("text", "what it is"), [(kind.label, kind.meaning) for kind in KINDS], "The texts.")
    page.table(
        ("quantity", "what it is"), [(one.label, one.meaning) for one in QUANTITIES], "The quantities."
    )


def _named(side: SideSummary) -> str:
    return f"{side.side.capitalize()} prompts ({side.prompts})"
