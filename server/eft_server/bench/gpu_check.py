"""`python -m eft_server.bench.gpu_check`: checks that need a GPU, in ten minutes: exactness, speed, memory."""

import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.bench import shapes
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import Rounds, spread
from eft_server.bench.targets import Job, Target, composite, member
from eft_server.engine.launcher import fork_server
from eft_server.engine.launcher.plan import plan
from eft_server.environment import log_vllm
from eft_server.errors import ConfigError
from eft_server.exits import errors_in_words
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import FamilyReport, inspect_family
from eft_server.family.load import load_config

COMPOSITE, DRAFTING = "composite", "composite, drafting"
EXACT = ("float32", "bfloat16")
WORK = Path(".bench")

console = Console(width=None if sys.stdout.isatty() else 140)


def main(
    family: Annotated[
        str, typer.Argument(help=f"A YAML file, or {', '.join(shapes.SHAPES)} (shapes without weights)")
    ] = "qwen25-7b-shapes",
    exact: Annotated[
        list[str] | None, typer.Option(help="Families to compare with transformers (default: demo)")
    ] = None,
    batch: Annotated[list[int], typer.Option(help="Batch size: requests at once; may be repeated")] = [
        1,
        8,
        32,
        128,
    ],
    tokens: Annotated[int, typer.Option(help="Tokens to generate per request", min=8)] = 128,
    prompt: Annotated[int, typer.Option(help="Prompt tokens per request", min=1)] = 128,
    prefill: Annotated[
        int, typer.Option(help="Prompt tokens per request when prefill is measured", min=1)
    ] = 512,
    rounds: Annotated[int, typer.Option(help="Rounds of measurements", min=1)] = 3,
    output: Annotated[Path, typer.Option(help="Folder for the JSON")] = Path("gpu-check"),
) -> None:
    """Check exactness in float32 and bfloat16; measure decoding and prefill against single models, drafts and memory.

    Engines run one after the other, each with the device to itself. The exit status is 1 if a result is not exact, and
    2 if a measurement failed.
    """
    log_vllm(None)
    jobs = Jobs(batch, tokens, prompt, prefill, rounds)
    with errors_in_words(RuntimeError):  # An engine may die.
        fork_server.start()
        path = str(shapes.write_family(family, WORK / family)) if family in shapes.SHAPES else family
        config = load_config(path)
        report = inspect_family(config)
        _require_room(jobs, int(plan(config, report).options["max_model_len"]))
        output.mkdir(parents=True, exist_ok=True)
        inexact = [name for name in EXACT if not _is_exact(exact or ["demo"], name, output)]
        results = [Rounds(title, size, tokens == 1) for title, size, _, tokens in jobs]
        with Progress() as progress:
            names = (*config.family.names, COMPOSITE, DRAFTING)
            advance = progress.begin("measuring", len(names) * len(results) * (1 + jobs.rounds))
            engines = {name: _measure(name, config, report, jobs, results, advance) for name in names}
    _print(config, engines, results)
    facts = {
        "device": _device(),
        "python": platform.python_version(),
        "command": sys.argv,
        "family": family,
        "engines": {name: vars(engine) for name, engine in engines.items()},
        "results": [result.to_json() for result in results],
    }
    (output / "speed.json").write_text(json.dumps(facts, indent=1) + "\n")
    console.print(f"Numbers: {output}")
    raise SystemExit(int(bool(inexact)))


@dataclass(frozen=True)
class Jobs:
    """The measurements; see `main`."""

    batches: Sequence[int]
    tokens: int
    prompt: int
    prefill: int
    rounds: int

    def __iter__(self) -> Iterator[tuple[str, int, int, int]]:
        """Title, requests, prompt tokens and generated tokens per request."""
        for size in self.batches:
            yield f"decode, batch {size}", size, self.prompt, self.tokens
        yield f"read {self.batches[0]} × {self.prefill}", self.batches[0], self.prefill, 1


@dataclass(frozen=True)
class EngineFacts:
    """Facts about an engine besides its speed.

    Attributes:
        start_s: seconds until it was ready.
        memory_mib: memory in use on the device while it ran; None without a GPU.
    """

    start_s: float
    memory_mib: int | None


def _require_room(jobs: Jobs, context: int) -> None:
    for title, _, prompt, tokens in jobs:
        if prompt + tokens > context:
            raise ConfigError(f"{title}: {prompt} + {tokens} tokens exceed the family's context of {context}")


def _is_exact(families: Sequence[str], dtype: str, output: Path) -> bool:
    """Run the exactness check in another process, since it starts engines and transformers on the device."""
    module = "eft_server.bench.exactness"
    options = ["--set", f"vllm.dtype={dtype}", "--output", str(output / f"exact-{dtype}.json")]
    return subprocess.run([sys.executable, "-m", module, *families, *options], check=False).returncode == 0


def _measure(
    name: str,
    config: ServerConfig,
    report: FamilyReport,
    jobs: Jobs,
    results: Sequence[Rounds],
    advance: Callable[..., None],
) -> EngineFacts:
    drawn, start = random.Random(0), time.perf_counter()
    target = _start(name, config, report)
    try:
        advance(0, now=f"starting {name}")
        target.wait_until_ready()
        start_s = time.perf_counter() - start
        for (title, size, prompt, tokens), result in zip(jobs, results, strict=True):
            result.tokens_per_s[name] = []
            for number in range(jobs.rounds + 1):
                prompts = [random_ids(prompt, report.vocabulary, drawn) for _ in range(size)]
                job = Job(prompts, tokens)
                timing = target.time(job)
                advance(now=f"{name}, {title}")
                if number:  # The first warms up.
                    result.add(name, job, timing)
        return EngineFacts(start_s, _memory_mib())
    finally:
        target.close()


def _start(name: str, config: ServerConfig, report: FamilyReport) -> Target:
    if name == DRAFTING:
        drafting = config.model_dump() | {"speculative": {"draft": next(iter(config.experts)), "tokens": 3}}
        return composite(name, plan(ServerConfig.model_validate(drafting), report))
    planned = plan(config, report)
    return composite(name, planned) if name == COMPOSITE else member(name, config, planned)


def _print(config: ServerConfig, engines: Mapping[str, EngineFacts], results: Sequence[Rounds]) -> None:
    rounds = len(results[0].tokens_per_s[COMPOSITE])
    table = Table(title=f"{config.name}: tokens/s, median (lowest to highest) of {rounds}")
    table.add_column("")
    for title in (*(result.title for result in results), "start, s", "memory, MiB"):
        table.add_column(title, justify="right")
    for name, engine in engines.items():
        memory = "" if engine.memory_mib is None else f"{engine.memory_mib:,}"
        rates = (spread(result.tokens_per_s[name], 0) for result in results)
        table.add_row(name, *rates, f"{engine.start_s:.0f}", memory)
    table.add_section()
    of_bound = (spread(result.ratios(COMPOSITE, result.bound(config.family.names))) for result in results)
    table.add_row("composite / bound", *of_bound)
    ratios = (spread(result.ratios(DRAFTING, result.tokens_per_s[COMPOSITE])) for result in results)
    table.add_row(f"{DRAFTING} / {COMPOSITE}", *ratios)
    accepted = [result.acceptance(DRAFTING) for result in results]
    table.add_row("acceptance rate", *("" if share is None else f"{share:.0%}" for share in accepted))
    console.print(table)


def _query(what: str) -> str | None:
    """Query the driver's tool; None if there is none."""
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
