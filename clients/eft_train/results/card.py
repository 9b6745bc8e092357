"""The model card, README.md: what was trained on what and how, what came out, and how to serve it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eft_train.results.families import EXPERT

__all__ = ["card"]

_CURVE = ("examples", "phase", "loss", "logps_chosen", "logps_rejected", "margin", "accuracy")
_PHASE = (
    "loss",
    "answers",
    "beta",
    "rate",
    "epochs",
    "batch",
    "accumulation",
    "schedule",
    "warmup",
    "max_length",
)


def card(record: Mapping[str, Any], name: str, picture: str | None) -> str:
    """Write the card.

    Args:
        record: What `training.json` holds.
        name: The family's name.
        picture: The file of the curves, if they were drawn.
    """
    parts = [
        _header(record),
        f"# {name}",
        _summary(record),
        "## Serving",
        _serving(record, name),
        "## Training",
        _phases(record),
        _data(record),
        "## Curves",
        _measured(record),
        f"![Log-probabilities and margin over the examples seen]({picture})" if picture else "",
        _table(_CURVE, record["curves"]),
        *(["## Warning", record["squeezing"]["words"] + "."] if record["squeezing"] else []),
        "## Compared with the server" if record["verification"] else "",
        _verified(record["verification"]) if record["verification"] else "",
        "## Licence",
        "The weights are derived from the base's: its licence applies to them, and so do the terms of the data.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _header(record: Mapping[str, Any]) -> str:
    base = record["base"]["model"]
    fields: dict[str, Any] = {"tags": ["eft", "trl", record["recipe"]["name"]]}
    if not Path(base).is_dir():
        fields["base_model"] = base
    if not record["full"]:
        fields["library_name"] = "peft"
    return f"---\n{yaml.safe_dump(fields, sort_keys=True).strip()}\n---"


def _summary(record: Mapping[str, Any]) -> str:
    base, recipe = record["base"], record["recipe"]
    at = f" at {base['revision']}" if base["revision"] else ""
    weights = "all its weights" if record["full"] else f"a LoRA adapter of rank {recipe['lora']['rank']}"
    return (
        f"{base['model']}{at}, fine-tuned by `eft train {recipe['name']}` ({weights}). {recipe['description']} "
        "`expert/` holds what was learnt; `training.json` has every number of this page."
    )


def _serving(record: Mapping[str, Any], name: str) -> str:
    reward = f'"coefficients": {{"base": 1.0, "{EXPERT}": 1.0}}'
    behaviour = reward if record["is_reward_model"] else f'"weights": {{"{EXPERT}": 1.0}}'
    return (
        "```console\neft serve family.yaml\n```\n\n"
        f'Each request weighs the expert: `{{"model": "{name}", "messages": […], "eft": {{{behaviour}}}}}`. '
        "`checkpoints.yaml` serves every checkpoint beside the reference."
    )


def _phases(record: Mapping[str, Any]) -> str:
    rows = []
    for name, phase in record["recipe"]["phases"].items():
        rate = phase["full_learning_rate" if record["full"] else "learning_rate"]
        unread = "beta" if phase["loss"] == "sft" else "answers"
        rows.append({"phase": name, "rate": f"{rate:g}", **phase, unread: None})
    numbers = _table(("phase", *_PHASE), rows)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    computed = record["computed"]
    return f"{numbers}\n\nSeed {record['seed']}, {computed['dtype']} on {computed['device']}; {versions}."


def _data(record: Mapping[str, Any]) -> str:
    data = record["data"]
    notes = "".join(f"\n- {note}" for note in record["notes"])
    return (
        f"{data['trained_on']:,} of {data['examples']:,} examples of `{data['source']['name']}` "
        f"(sha256 `{data['sha256']}`); {len(record['held_out']):,} are held out, no prompt is on both sides.{notes}"
    )


def _measured(record: Mapping[str, Any]) -> str:
    of = "held-out examples" if record["measured_on"] == "held-out.jsonl" else "examples that were learnt"
    compared = (
        "The margin is that of the log-probabilities themselves."
        if record["is_reward_model"]
        else "The margin is by how much the difference between chosen and rejected has grown since the reference."
    )
    return f"Means over {len(record['measured'])} {of}, in nats, summed over an answer's tokens. {compared}"


def _verified(found: Mapping[str, Any]) -> str:
    return (
        f"Served in float32, {found['texts']} answers of {found['examples']} examples have the log-probabilities that "
        f"the trainer measured: the greatest difference is {found['total_difference']:.1e} nats an answer, and "
        f"{found['reward_difference']:.1e} for the reward that the last phase added."
    )


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    used = [column for column in columns if any(row.get(column) is not None for row in rows)]
    head = [f"| {' | '.join(used)} |", f"|{'---|' * len(used)}"]
    return "\n".join(
        [*head, *(f"| {' | '.join(_shown(row.get(column)) for column in used)} |" for row in rows)]
    )


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
