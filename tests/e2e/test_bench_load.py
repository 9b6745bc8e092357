"""`eft bench load` against the real server: what it was told to ask is what the server counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import Server


def test_weights_members_and_mixes_are_measured_on_a_real_server(server: Server, tmp_path: Path) -> None:
    command = [
        *(str(Path(sys.executable).with_name("eft")), "bench", "load", "--url", f"{server.url}/v1"),
        *("--setting", "steered=tiny helpful=0.7 harmless=0.3", "--setting", "base=tiny/base"),
        *("--mix", "traffic=1*steered 1*base", "--concurrency", "2", "--rate", "20", "--requests", "4"),
        *("--repeats", "2", "--warm-up", "1", "--input-tokens", "48", "--output-tokens", "6"),
        *("--body", '{"ignore_eos": true}', "--output", str(tmp_path)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"COLUMNS": "160"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["outcomes"]) == 6
    for outcome in summary["outcomes"]:
        found = outcome["figures"]
        # From the schedule only where there is one.
        absent = {name for name, spread in found.items() if spread is None}
        assert all("schedule" in name for name in absent)
        figures = {name: spread["median"] for name, spread in found.items() if spread is not None}
        assert figures["completed"] == 4
        assert figures["failed"] == 0
        assert figures["output_tokens"] == 6
        assert 24 <= figures["input_tokens"] <= 96
        assert 0 < figures["ttft_ms_p50"] <= figures["e2e_ms_p50"]
        assert figures["tpot_ms_p50"] > 0
    assert set(summary["outcomes"][1]["ratios"]) >= {"ttft_ms_p50", "output_tokens_per_s"}
    assert (folder / "report.html").stat().st_size > 10_000
