"""A tiny random reference with a chat template, pairs for it, and trainings of seconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eft_client.progress import Progress
from eft_train.data.reading import DataSource
from eft_train.plan import Plan
from eft_train.recipe import load_recipe
from eft_train.run import Trained, train

from ...engine.checkpoints import write_checkpoint

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'][0] + ':' + message['content'] + eos_token + '.' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
"""Writes something behind the end of a turn, as many templates do: the server ends before it."""

SMALL = ("lora.rank=2", "lora.alpha=4")


def write_base(path: Path, template: str | None = TEMPLATE, **sizes: Any) -> Path:
    """A reference; without a template it only takes text."""
    write_checkpoint(path, 0, hidden_size=32, intermediate_size=48, head_dim=16, **sizes)
    (path / "chat_template.jinja").unlink()
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def pairs(count: int = 20) -> list[dict[str, Any]]:
    """Pairs whose chosen answers are short and whose rejected ones are long."""
    return [
        {
            "prompt": [{"role": "user", "content": f"what-is-{number}?"}],
            "chosen": f"it-is-{number}",
            "rejected": f"no-idea-about-{number % 7}-at-all",
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(recipe: str, base: Path, data: Path, out: Path, *settings: str, **options: Any) -> Plan:
    """A plan of a few steps, on one thread, not compared with a server."""
    chosen = load_recipe(recipe, [*(SMALL if not options.get("full") else ()), *settings])
    usual = dict(threads=1, verify=False, device="cpu", held_out=0.2)
    return Plan(chosen, str(base), DataSource(str(data)), out, **(usual | options))


def trained(recipe: str, base: Path, data: Path, out: Path, *settings: str, **options: Any) -> Trained:
    """Such a training."""
    with Progress() as progress:
        return train(plan_of(recipe, base, data, out, *settings, **options), progress)
