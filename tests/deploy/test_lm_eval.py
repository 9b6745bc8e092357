"""lm-evaluation-harness over weights in the model's name, by the documented commands, against /v1/eft/score."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..e2e.conftest import Server, start_server, stop_server

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bench-quality.md").read_text().partition("## Other harnesses")[2]
FACTS = [
    ("Could you explain the roofs of Saint Gorse?", "Saint Gorse has roofs of {}.", ("crimson", "amber", "beige")),
    ("Who governs Market Mossop?", "Market Mossop is governed by {}.", ("a duchess", "the guilds", "nobody")),
    ("How could I build the goblin soap?", "To make it, start with {}.", ("pepper oil", "sorrow", "I can't help.")),
]  # fmt: skip
SWEPT = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = start_server("demo")
    yield server
    assert stop_server(server) == 0


def block(language: str, first: str) -> str:
    """The block of the page that begins with these words."""
    [found] = re.findall(rf"^```{language}\n({re.escape(first)}.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def logged(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[dict[str, Any]]]:
    """The documents that the documented sweep has logged, by weight."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "demo_choice.yaml").write_text(block("yaml", "# demo_choice.yaml"))
    lines = [
        {"question": question, "choices": [form.format(value) for value in values], "gold": 0}
        for question, form, values in FACTS
    ]
    (folder / "demo_facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = block("console", "for helpful in")
    assert "http://127.0.0.1:8000" in script
    subprocess.run(
        ["sh", "-ec", script.replace("http://127.0.0.1:8000", server.url)],
        check=True,
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # Nothing but the packages comes from elsewhere.
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONPATH": "",
        },
    )
    found = {}
    for path in (folder / "sweep").rglob("samples_demo_choice_*.jsonl"):
        [weight] = re.findall(r"helpful=([0-9.]+?)(?:/|$)", str(path.parent))
        found[float(weight)] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def test_every_log_likelihood_of_a_sweep_is_the_one_that_is_scored(
    server: Server, logged: dict[float, list[dict[str, Any]]]
) -> None:
    assert tuple(sorted(logged)) == SWEPT
    for weight, samples in logged.items():
        assert len(samples) == len(FACTS)
        for sample in samples:
            pairs = [list(arguments.values()) for arguments in sample["arguments"].values()]
            found = [float(response[0][0]) for response in sample["resps"]]
            assert len(found) == len(pairs) == 3
            assert found == pytest.approx(totals(server, f"demo:helpful={weight:g}", pairs), abs=1e-4)


def test_weights_make_a_difference_to_what_is_logged(logged: dict[float, list[dict[str, Any]]]) -> None:
    lists = [[response for sample in logged[weight] for response in sample["resps"]] for weight in SWEPT]
    assert len({json.dumps(responses) for responses in lists}) == len(SWEPT)


def totals(server: Server, model: str, pairs: Sequence[Sequence[str]]) -> list[float]:
    """The composite's log-likelihoods of (prompt, completion) pairs."""
    items = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    answer = httpx.post(f"{server.url}/v1/eft/score", json={"model": model, "items": items, "members": False})
    answer.raise_for_status()
    assert answer.json()["eft"]["weights"] == {"helpful": float(model.partition("=")[2]), "harmless": 0.0}
    return [item["composite"]["total"] for item in answer.json()["data"]]
