"""`eft dynamics` against a real server: its numbers are those of plain transformers, along checkpoints and weights."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .conftest import Server

END = 0
PAIRS = [
    {"id": "fox", "prompt": "The quick brown", "chosen": " fox jumps over", "rejected": " dog"},
    {"id": "dog", "prompt": "Hello", "chosen": " world!", "rejected": " lazy dog over there."},
]
HELD_OUT = [
    {"id": "held", "prompt": "Over the", "chosen": " lazy dog", "rejected": " hello"},
    {"id": "back", "prompt": "A brown", "chosen": " dog", "rejected": " world over"},
]
OPTIONS = [
    "--checkpoints",
    "helpful=100,harmless=200",
    "--over",
    "helpful=0:1:0.5 harmless=0",
    "--max-tokens",
    "4",
]


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the command left."""
    folder = tmp_path_factory.mktemp("dynamics")
    for name, pairs in (("trained", PAIRS), ("held", HELD_OUT)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    files = ["--data", str(folder / "trained.jsonl"), "--held-out", str(folder / "held.jsonl")]
    command = [
        str(Path(sys.executable).with_name("eft")),
        "dynamics",
        "--url",
        f"{server.url}/v1",
        *files,
        *OPTIONS,
    ]
    more = ["--output", str(folder / "out"), "--repeats", "200"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "prompts with 28 texts, each under 6 checkpoints or settings" in done.stderr
    return folder / "out"


class Plain:
    """The members as plain transformers models."""

    def __init__(self, family_file: Path) -> None:
        names = ("base", "small", "helpful", "harmless")
        folder = family_file.parent
        self.models = {
            name: AutoModelForCausalLM.from_pretrained(folder / name).double().eval() for name in names
        }
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        self.shared = len(self.tokenizer)

    def rows(self, pair: dict[str, str], **weights: float) -> tuple[torch.Tensor, list[int]]:
        """The rows of log-probabilities along a pair's chosen answer, over the ids that all members share."""
        prompt = self.tokenizer(pair["prompt"]).input_ids
        answer = [*self.tokenizer(pair["chosen"], add_special_tokens=False).input_ids, END]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = sum(weight * self.models[name](ids).logits[0] for name, weight in weights.items())
        return logits[len(prompt) - 1 : -1, : self.shared].log_softmax(-1), answer  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def plain(family_file: Path) -> Plain:
    return Plain(family_file)


def levels(folder: Path, axis: int, quantity: str) -> list[float]:
    side = json.loads((folder / "summary.json").read_text())["axes"][axis]["sides"]["training"]
    [curve] = [one for one in side["curves"] if (one["kind"], one["quantity"]) == ("chosen", quantity)]
    return [one["value"] for one in curve["levels"]]


def expected(plain: Plain, quantity: str, **weights: float) -> float:
    """The mean over the two training prompts, in float64."""
    found = []
    for pair in PAIRS:
        rows, answer = plain.rows(pair, **weights)
        p, picked = rows.exp(), rows[range(len(answer)), answer]
        norms = p.norm(dim=-1)
        gaps = (p - torch.nn.functional.one_hot(torch.tensor(answer), plain.shared)).norm(dim=-1)
        values: dict[str, Any] = {
            "total": picked.sum(),
            "argmax": rows.max(-1).values.sum(),
            "entropy": -(p * rows).sum(-1).mean(),
            "log_rest": torch.log1p(-rows.max(-1).values.exp()).mean(),
            "a_o": math.sqrt(plain.shared * norms.mean() ** 2 + plain.shared - 2),
            "gap": gaps.mean(),
        }
        found.append(float(values[quantity]))
    return sum(found) / len(found)


@pytest.mark.parametrize("quantity", ["total", "argmax", "entropy", "log_rest", "a_o", "gap"])
def test_every_quantity_is_that_of_plain_transformers(folder: Path, plain: Plain, quantity: str) -> None:
    along_training = [expected(plain, quantity, **{name: 1.0}) for name in ("small", "helpful", "harmless")]
    assert levels(folder, 0, quantity) == pytest.approx(along_training, abs=1e-3)
    over = [expected(plain, quantity, base=1.0, helpful=w, small=-w) for w in (0.5, 1.0)]
    assert levels(folder, 1, quantity)[1:] == pytest.approx(over, abs=1e-3)


def test_the_run_leaves_a_page_and_says_what_it_saw(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "What happened over training" in page and "Squeezing over the weight of helpful" in page
    said = json.loads((folder / "summary.json").read_text())["says"]
    assert any(sentence.startswith("Over training: serve h") for sentence in said)
