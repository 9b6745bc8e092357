"""The picture of the frontier between helpfulness and harmlessness."""

from pathlib import Path
from typing import Any

from eft_demo.evaluation import DECODINGS, LAMBDAS, Score, frontier_name
from eft_demo.report import Scores

_POINTS = {
    "small-helpful": ("small helpful", "^", "tab:orange"),
    "small-harmless": ("small harmless", "v", "tab:orange"),
    "large-helpful": ("large helpful, truly fine-tuned", "^", "tab:green"),
    "large-harmless": ("large harmless, truly fine-tuned", "v", "tab:green"),
    "large-base": ("large base", "s", "tab:grey"),
    "small-base": ("small base", "o", "tab:grey"),
}

#: Where the frontier's points lie far enough apart to be labelled.
_LABELLED = (0.0, 0.4, 0.5, 0.6, 0.7, 1.0)


def draw_frontier(scores: Scores, path: Path) -> None:
    """Write a PNG: manners traded against each other along λ, and the facts that stay."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (manners, facts) = pyplot.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    _draw_manners(manners, scores)
    _draw_facts(facts, scores)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_manners(axes: Any, scores: Scores) -> None:
    """Full answers against refusals of unsafe requests, sampled decoding, λ along the line."""
    frontier = [scores["sampled", frontier_name(weight)] for weight in LAMBDAS]
    _errorbar(axes, frontier, label="up-scaled, λ helpful + (1 − λ) harmless", fmt="o-", color="tab:blue")
    for weight, score in zip(LAMBDAS, frontier, strict=True):
        if weight not in _LABELLED:
            continue
        place = (100 * score.rate("full"), 100 * score.rate("refusals"))
        axes.annotate(
            f"λ = {weight:.1f}",
            place,
            textcoords="offset points",
            xytext=(5, 6),
            fontsize=8,
            color="tab:blue",
        )
    for name, (label, marker, colour) in _POINTS.items():
        _errorbar(axes, [scores["sampled", name]], label=label, fmt=marker, color=colour)
    axes.set(
        xlabel="helpfulness: full answers to safe questions (%)",
        ylabel="harmlessness: unsafe requests declined (%)",
        title="The frontier (sampled at temperature 1)",
        xlim=(-4, 104),
        ylim=(-4, 108),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="upper right")


def _errorbar(axes: Any, scores: list[Score], **style: Any) -> None:
    """Points with 95 % intervals on both axes."""
    x, x_error = _with_errors(scores, "full")
    y, y_error = _with_errors(scores, "refusals")
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, capsize=2, markersize=6, linewidth=1.2, **style)


def _draw_facts(axes: Any, scores: Scores) -> None:
    """Facts right along λ, with the experts at both ends as levels."""
    for decoding, fmt in zip(DECODINGS, ("o-", "s--"), strict=True):
        along = [scores[decoding, frontier_name(weight)] for weight in LAMBDAS]
        y, error = _with_errors(along, "correct")
        axes.errorbar(
            LAMBDAS, y, yerr=error, fmt=fmt, capsize=2, color="tab:blue", label=f"up-scaled, {decoding}"
        )
    for name in ("small-harmless", "large-harmless", "small-helpful", "large-helpful"):
        label, marker, colour = _POINTS[name]
        y, error = _with_errors([scores["greedy", name]], "correct")
        place = 1.04 if name.endswith("helpful") else -0.04
        axes.errorbar([place], y, yerr=error, fmt=marker, capsize=2, color=colour, label=f"{label}, greedy")
    axes.set(
        xlabel="λ, the weight of the helpful expert",
        ylabel="factuality: held-out facts right (%)",
        title="Facts along the frontier",
        ylim=(0, 104),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower center")


def _with_errors(scores: list[Score], measure: str) -> tuple[list[float], list[list[float]]]:
    """Rates in percent, and their distances to the ends of their intervals (below, above)."""
    rates = [100 * score.rate(measure) for score in scores]
    ends = [score.interval(measure) for score in scores]
    below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, ends, strict=True)]
    above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, ends, strict=True)]
    return rates, [below, above]
