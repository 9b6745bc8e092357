"""`eft probe` with an engine of its own: what it collects is what transformers computes, and is asked for once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = 12


def _lines() -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Which fox is number {number}?"}],
            "chosen": f"The fox {'lazy' if number % 2 else 'quick'} jumps {number}.",
            "rejected": f"Hello brown world {'!' * (1 + number % 3)}",
        }
        for number in range(PROMPTS)
    ]


def _probe(family: Path, data: Path, output: Path) -> tuple[str, float]:
    """Run the command; what it said of its progress, and the expert's accuracy."""
    command = [str(Path(sys.executable).with_name("eft")), "probe", str(family), "--expert", "helpful"]
    few = ["--folds", "3", "--shuffles", "5", "--repeats", "100", "--layers", "0,-1", "--pool", "mean"]
    done = subprocess.run(
        [*command, *few, "--data", str(data), "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [target] = json.loads((output / "summary.json").read_text())["targets"]
    assert target["sentence"] in " ".join(done.stdout.split())
    assert "<svg" in (output / "report.html").read_text()
    values = {(one["measure"], one["source"]): one["value"] for one in target["estimates"]}
    return done.stderr, values["accuracy", "expert"]


def test_an_engine_s_activations_are_transformers_and_are_collected_once(
    family_file: Path, tmp_path: Path
) -> None:
    data, output = tmp_path / "pairs.jsonl", tmp_path / "out"
    data.write_text("\n".join(json.dumps(line) for line in _lines()))
    said, accuracy = _probe(family_file, data, output)
    assert "activations (pool mean): 24 of 24" in said
    kept = {
        (member, layer): np.load(output / "activations" / "mean" / f"{member}.{layer}.npy")
        for member in ("helpful", "small")
        for layer in (0, 1)
    }
    # The rejected answer of a pair comes first.
    texts = [(line, line[which]) for line in _lines() for which in ("rejected", "chosen")]
    for place in (0, 1, 23):
        for member in ("helpful", "small"):
            states = _states(family_file.parent / member, *texts[place])
            for layer in (0, 1):
                assert np.abs(kept[member, layer][place] - states[layer]).max() < 1e-3
    said, again = _probe(family_file, data, output)
    assert "activations" not in said and again == accuracy


def _states(folder: Path, line: dict[str, Any], answer: str) -> list[np.ndarray]:
    """What each layer adds up to, the mean over the answer's tokens and the end of its turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(line["prompt"], add_generation_prompt=True, return_dict=False)
    completion = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        model(torch.tensor([[*prompt, *completion]]))
    return [states.reshape(-1, states.shape[-1])[len(prompt) :].mean(dim=0).numpy() for states in found]
