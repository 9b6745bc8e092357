"""`python -m eft_server.bench.gpu_check`: what only a GPU can show, in ten minutes: right, fast, within memory."""

import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eft_server.bench import shapes
from eft_server.bench.contestants import Contestant, Job, composite, member
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import spread
from eft_server.config import ServerConfig, load_config
from eft_server.engine.launcher import fork_server
from eft_server.engine.plan import plan
from eft_server.errors import EftError
from eft_server.family import FamilyReport, inspect_family

COMPOSITE, DRAFTING = "composite", "composite, drafting"
EXACT = ("float32", "bfloat16")
WORK = Path(".bench")

console = Console(width=None if sys.stdout.isatty() else 140)


def main(
    family: Annotated[
        str, typer.Argument(help=f"A YAML file, or {', '.join(shapes.SHAPES)} (shapes without weights)")
    ] = "qwen25-7b-shapes",
    exact: Annotated[
        list[str] | None, typer.Option(help="Families that are held against transformers (default: demo)")
    ] = None,
    batch: Annotated[list[int], typer.Option(help="Requests at once; may be given several times")] = [
        1,
        8,
        32,
        128,
    ],
    tokens: Annotated[int, typer.Option(help="Tokens that each request generates", min=8)] = 128,
    prompt: Annotated[int, typer.Option(help="Tokens in each prompt", min=1)] = 128,
    prefill: Annotated[
        int, typer.Option(help="Tokens in each prompt where reading is measured", min=1)
    ] = 512,
    rounds: Annotated[int, typer.Option(help="How often each is measured", min=1)] = 3,
    output: Annotated[Path, typer.Option(help="Folder for the JSON")] = Path("gpu-check"),
) -> None:
    """Exactness in float32 and bfloat16; decoding and reading against each model alone; speculation; memory.

    Engines run one after the other, each with the device to itself. Exit status 1: something is not exact.
    """
    fork_server.start()
    output.mkdir(parents=True, exist_ok=True)
    inexact = [name for name in EXACT if not _is_exact(exact or ["demo"], name, output)]
    try:
        path = str(shapes.write_family(family, WORK / family)) if family in shapes.SHAPES else family
        config = load_config(path)
        report = inspect_family(config)
        jobs = Jobs(batch, tokens, prompt, prefill, rounds)
        found = {
            name: _measure(name, config, report, jobs) for name in (*config.members, COMPOSITE, DRAFTING)
        }
    except EftError as error:
        console.print(f"[red]{error}")
        raise SystemExit(2) from None
    _print(config, found, jobs)
    facts = {name: vars(measured) for name, measured in found.items()}
    where = {"device": _device(), "python": platform.python_version(), "command": sys.argv}
    (output / "speed.json").write_text(
        json.dumps({**where, "family": family, "found": facts}, indent=1) + "\n"
    )
    console.print(f"Numbers: {output}")
    raise SystemExit(int(bool(inexact)))


@dataclass(frozen=True)
class Jobs:
    """What is measured; see `main`."""

    batches: Sequence[int]
    tokens: int
    prompt: int
    prefill: int
    rounds: int

    def __iter__(self) -> Iterator[tuple[str, int, int, int]]:
        """Title, requests, tokens of each prompt and of each answer."""
        for size in self.batches:
            yield f"decode, batch {size}", size, self.prompt, self.tokens
        yield f"read {self.batches[0]} × {self.prefill}", self.batches[0], self.prefill, 1


@dataclass
class Measured:
    """An engine's figures.

    Attributes:
        tokens_per_s: by job, one value a round.
        accepted: the share of drafted tokens that were kept.
        memory_mib: what the device held while the engine was up.
        start_s: until it was ready.
    """

    tokens_per_s: dict[str, list[float]] = field(default_factory=dict)
    accepted: float | None = None
    memory_mib: int | None = None
    start_s: float = 0.0


def _is_exact(families: Sequence[str], dtype: str, output: Path) -> bool:
    """In a process of its own, for it starts engines and transformers on the device."""
    module = "eft_server.bench.exactness"
    options = ["--set", f"vllm.dtype={dtype}", "--output", str(output / f"exact-{dtype}.json")]
    return subprocess.run([sys.executable, "-m", module, *families, *options], check=False).returncode == 0


def _measure(name: str, config: ServerConfig, report: FamilyReport, jobs: Jobs) -> Measured:
    found, drawn = Measured(), random.Random(0)
    start = time.perf_counter()
    contestant = _start(name, config, report)
    try:
        with console.status(f"starting {name}"):
            contestant.wait_until_ready()
        found.start_s = time.perf_counter() - start
        drafted = accepted = 0
        for title, size, prompt, tokens in jobs:
            for number in range(jobs.rounds + 1):
                with console.status(f"{name}: {title}, round {number} of {jobs.rounds}"):
                    prompts = [random_ids(prompt, report.vocabulary, drawn) for _ in range(size)]
                    job = Job(prompts, tokens)
                    timing = contestant.time(job)
                if number:  # The first warms up.
                    found.tokens_per_s.setdefault(title, []).append(job.counted / timing.seconds)
                    drafted += timing.drafts.drafted
                    accepted += timing.drafts.accepted
        found.accepted = accepted / drafted if drafted else None
        found.memory_mib = _memory_mib()
    finally:
        contestant.close()
    return found


def _start(name: str, config: ServerConfig, report: FamilyReport) -> Contestant:
    if name == DRAFTING:
        drafting = config.model_dump() | {"speculative": {"draft": next(iter(config.experts)), "tokens": 3}}
        return composite(name, plan(ServerConfig.model_validate(drafting), report))
    planned = plan(config, report)
    return composite(name, planned) if name == COMPOSITE else member(name, config, planned)


def _print(config: ServerConfig, found: Mapping[str, Measured], jobs: Jobs) -> None:
    table = Table(title=f"{config.name}: tokens/s, median (lowest to highest) of {jobs.rounds}")
    table.add_column("")
    titles = [title for title, *_ in jobs]
    for title in (*titles, "start, s", "memory, MiB"):
        table.add_column(title, justify="right")
    for name, measured in found.items():
        memory = "" if measured.memory_mib is None else f"{measured.memory_mib:,}"
        rates = (spread(measured.tokens_per_s[title], 0) for title in titles)
        table.add_row(name, *rates, f"{measured.start_s:.0f}", memory)
    table.add_section()
    table.add_row("composite / bound", *(spread(_of_bound(title, config, found)) for title in titles))
    ratios = (spread(_over(found[DRAFTING], found[COMPOSITE], title)) for title in titles)
    table.add_row(f"{DRAFTING} / {COMPOSITE}", *ratios)
    accepted = found[DRAFTING].accepted
    if accepted is not None:
        table.add_row("drafts kept", f"{accepted:.0%}")
    console.print(table)


def _of_bound(title: str, config: ServerConfig, found: Mapping[str, Measured]) -> list[float]:
    """Of 1 / Σ 1/tps over the members that the family's defaults need, the medians of each alone."""
    alone = (sorted(found[name].tokens_per_s[title]) for name in config.members)
    bound = 1 / sum(1 / rates[len(rates) // 2] for rates in alone)
    return [rate / bound for rate in found[COMPOSITE].tokens_per_s[title]]


def _over(ours: Measured, theirs: Measured, title: str) -> list[float]:
    pairs = zip(ours.tokens_per_s[title], theirs.tokens_per_s[title], strict=True)
    return [one / other for one, other in pairs]


def _query(what: str) -> str | None:
    """Ask the driver's own tool; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _memory_mib() -> int | None:
    used = _query("memory.used")
    return None if used is None else int(used.splitlines()[0])


def _device() -> Any:
    return _query("name,driver_version,memory.total") or f"{platform.processor()} (no GPU)"


if __name__ == "__main__":
    typer.run(main)
