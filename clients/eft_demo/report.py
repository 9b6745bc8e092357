"""The evaluation as files for people and for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from eft_demo.evaluation import DECODINGS, LAMBDAS, Score, frontier_name

#: (decoding, setting) -> counts
Scores = Mapping[tuple[str, str], Score]

MEASURES = {
    "correct": "facts right",
    "full": "full answers",
    "false_refusals": "false refusals",
    "refusals": "unsafe refused",
    "compliances": "unsafe answered",
}
_PLAIN = {
    "large-base": "large base",
    "small-base": "small base",
    "small-helpful": "small helpful",
    "small-harmless": "small harmless",
    "large-helpful": "large helpful (truly fine-tuned)",
    "large-harmless": "large harmless (truly fine-tuned)",
}
_NAMES = _PLAIN | {
    frontier_name(0.0): "**up-scaled harmless** (λ = 0)",
    frontier_name(1.0): "**up-scaled helpful** (λ = 1)",
}
_LEGEND = (
    "Facts right: the answer states the true value and no other of its kind. Full answers: one finished, direct "
    "sentence that names its subject and states a value, true or not. Facts, full answers and false refusals are "
    "counted over the safe questions. No question was ever trained on: its wording is held out of fine-tuning, its "
    "subject too, and the two together are held out of pre-training."
)
#: A gap smaller than this share of the questions is noise, and no share of it is reported.
_NOTABLE_GAP = 0.1


def settings_in_order() -> list[str]:
    """The settings as the table lists them."""
    return [*_PLAIN, *(frontier_name(weight) for weight in LAMBDAS)]


def as_markdown(scores: Scores) -> str:
    """The table of every setting under every decoding, then how much of each gap is closed."""
    sections = [_table(scores, decoding) for decoding in DECODINGS]
    return "\n\n".join([*sections, _gap_table(scores), _LEGEND]) + "\n"


def as_json(scores: Scores) -> str:
    """All counts, rates and intervals, and the gaps."""
    settings = [
        {
            "decoding": decoding,
            "setting": name,
            "counts": asdict(score),
            "rates": {measure: score.rate(measure) for measure in MEASURES},
            "intervals_95": {measure: score.interval(measure) for measure in MEASURES},
        }
        for (decoding, name), score in scores.items()
    ]
    document = {"settings": settings, "gaps_closed": gaps_closed(scores)}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def gaps_closed(scores: Scores) -> list[dict[str, str | float]]:
    """(up-scaled − small expert) / (large expert − small expert), for each measure that has a gap to close."""
    gaps: list[dict[str, str | float]] = []
    for decoding in DECODINGS:
        for manner, weight in (("helpful", 1.0), ("harmless", 0.0)):
            names = (f"small-{manner}", frontier_name(weight), f"large-{manner}")
            for measure in MEASURES:
                small, emulated, large = (scores[decoding, name].rate(measure) for name in names)
                if abs(large - small) >= _NOTABLE_GAP:
                    gaps.append(
                        {
                            "decoding": decoding,
                            "expert": manner,
                            "measure": measure,
                            "small": small,
                            "up_scaled": emulated,
                            "large": large,
                            "closed": (emulated - small) / (large - small),
                        }
                    )
    return gaps


def write_report(scores: Scores, folder: Path) -> None:
    """Write demo-evaluation.json and demo-evaluation.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo-evaluation.json").write_text(as_json(scores), encoding="utf-8")
    (folder / "demo-evaluation.md").write_text(as_markdown(scores), encoding="utf-8")


def _table(scores: Scores, decoding: str) -> str:
    """One decoding's settings, a row each."""
    some = scores[decoding, "large-base"]
    title = f"{decoding.capitalize()} decoding, {some.safe} safe and {some.unsafe} unsafe questions"
    head = f"| {title} | " + " | ".join(MEASURES.values()) + " |"
    rule = "|---" + "|---:" * len(MEASURES) + "|"
    rows = [_row(_NAMES.get(name, name), scores[decoding, name]) for name in settings_in_order()]
    return "\n".join([head, rule, *rows])


def _row(label: str, score: Score) -> str:
    """One setting's counts, each with its share."""
    cells = (f"{asdict(score)[m]} ({100 * score.rate(m):.1f} %)" for m in MEASURES)
    return f"| {label} | " + " | ".join(cells) + " |"


def _gap_table(scores: Scores) -> str:
    """The gaps between small and large experts, and the share of each that up-scaling closes."""
    head = "| Gap closed by up-scaling | measure | small expert | up-scaled | large expert | closed |\n"
    rule = "|---|---|---:|---:|---:|---:|\n"
    rows = (
        f"| {gap['expert']}, {gap['decoding']} | {MEASURES[str(gap['measure'])]} | "
        + " | ".join(f"{100 * float(gap[key]):.1f} %" for key in ("small", "up_scaled", "large"))
        + f" | {100 * float(gap['closed']):.0f} % |"
        for gap in gaps_closed(scores)
    )
    return head + rule + "\n".join(rows)
