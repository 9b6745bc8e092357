"""`python -m eft_server.bench`: the table, and the numbers behind it as JSON."""

import json
import os
import platform
import random
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from eft_server.behaviours import Behaviours
from eft_server.bench.contestants import Contestant, Job, Timed, Variant, composite, loop, member
from eft_server.bench.rounds import Rounds, run, spread
from eft_server.bench.smollm2 import write_family
from eft_server.config import ServerConfig, load_config
from eft_server.engine.plan import plan
from eft_server.errors import ConfigError, EftError
from eft_server.family import inspect_family

COMPOSITE, SPECULATIVE, LOOP = "composite", "composite, speculative", "transformers loop"
FILTERED, APART = "composite, filtered", "composite, own prompts"
WORK = Path(".bench")

console = Console()


def main(
    families: Annotated[
        list[str] | None,
        typer.Argument(help="Bundled names, YAML files, or smollm2 (the default: demo smollm2)"),
    ] = None,
    batch: Annotated[list[int], typer.Option(help="Requests at once; may be given several times")] = [
        1,
        4,
        16,
    ],
    tokens: Annotated[int, typer.Option(help="Tokens that each request generates", min=8)] = 48,
    prompt: Annotated[int, typer.Option(help="Tokens in each prompt", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turns", min=1)] = 5,
    draft: Annotated[
        str | None, typer.Option(help="The member that drafts (default: the first expert)")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON")] = Path("bench-results"),
) -> None:
    """Measure greedy decoding, side by side and in turns.

    The base and every member alone in plain vLLM; the composite, with and without speculative decoding; and a loop
    over the same models in transformers. The bound is what a composite that adds nothing would reach: 1 / Σ 1/tps
    over its members. Ratios are taken within a round, since the machine's speed may change between rounds.
    """
    for family in families or ["demo", "smollm2"]:
        try:
            path = str(write_family(WORK / family)) if family == "smollm2" else family
            _measure(load_config(path), batch, tokens, prompt, rounds, draft, output)
        except EftError as error:
            console.print(f"[red]{error}")
            raise SystemExit(2) from None


def _measure(
    config: ServerConfig,
    batches: list[int],
    tokens: int,
    prompt: int,
    rounds: int,
    draft: str | None,
    output: Path,
) -> None:
    jobs = [Job(_prompts(size, prompt), tokens) for size in batches]
    with ExitStack() as stack:
        contestants = _with_variants(config, _start(config, draft or next(iter(config.experts)), stack))
        columns = (
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("measuring", total=len(jobs) * rounds * len(contestants))
            results = [
                run(contestants, job, rounds, lambda name: progress.update(task, advance=1, description=name))
                for job in jobs
            ]
    _print(config, results)
    _save(config, results, jobs[0], output)


def _start(config: ServerConfig, draft: str, stack: ExitStack) -> dict[str, Contestant]:
    if config.adapters:
        names = ", ".join(config.adapters)
        raise ConfigError(f"each member runs alone here: merge the adapters into checkpoints first ({names})")
    report = inspect_family(config)
    plain = plan(config.model_copy(update={"speculative": None}), report)
    drafted = config.model_dump() | {"speculative": {"draft": draft, "tokens": 3}}
    speculative = plan(ServerConfig.model_validate(drafted), report)
    contestants: dict[str, Contestant] = {}
    coefficients = Behaviours(config).resolve(config.name).coefficients
    with console.status("") as status:
        for name in (*config.members, COMPOSITE, SPECULATIVE, LOOP):
            status.update(
                f"{config.name}: starting {name} ({len(contestants) + 1} of {len(config.members) + 3})"
            )
            if name in config.members:
                contestant = member(name, config, plain)
            elif name == LOOP:
                contestant = loop(name, config, coefficients)
            else:
                contestant = composite(name, plain if name == COMPOSITE else speculative)
            stack.callback(contestant.close)
            contestants[name] = contestant
        for name, contestant in contestants.items():
            status.update(f"{config.name}: waiting for {name}")
            contestant.wait_until_ready()
    return contestants


def _with_variants(config: ServerConfig, contestants: dict[str, Contestant]) -> dict[str, Timed]:
    """The composite twice more: with an expert filter on every row, and with prompts of the members' own."""
    asked = {"filter": {"kind": "expert", "top_p": 0.9}}
    mixture = Behaviours(config).resolve(config.name, asked).mixture.numbers
    skipped = (0, *(8 for _ in config.members[1:]))
    composite = contestants[COMPOSITE]
    return {
        **contestants,
        FILTERED: Variant(composite, {"mixture": mixture}),
        APART: Variant(composite, {"skipped": skipped}),
    }


def _prompts(count: int, length: int) -> list[list[int]]:
    shuffled = random.Random(0)
    return [[shuffled.randrange(300, 1500) for _ in range(length)] for _ in range(count)]


def _print(config: ServerConfig, results: list[Rounds]) -> None:
    table = Table(
        title=f"{config.name}: tokens/s, median of {len(results[0].tokens_per_s[COMPOSITE])} rounds"
    )
    table.add_column("")
    for result in results:
        table.add_column(f"batch {result.batch}", justify="right")
    for name in results[0].tokens_per_s:
        table.add_row(name, *(f"{result.median(name):.1f}" for result in results))
    bounds = [result.bound(config.members) for result in results]
    table.add_section()
    pairs = list(zip(results, bounds, strict=True))
    table.add_row("composite / bound", *(spread(result.ratios(COMPOSITE, bound)) for result, bound in pairs))
    table.add_row("composite / loop", *(spread(_against(result, COMPOSITE, LOOP)) for result in results))
    for name in (SPECULATIVE, FILTERED, APART):
        against = (spread(_against(result, name, COMPOSITE)) for result in results)
        table.add_row(f"{name.removeprefix('composite, ')} / composite", *against)
    console.print(table)


def _against(result: Rounds, name: str, other: str) -> list[float]:
    return result.ratios(name, result.tokens_per_s[other])


def _save(config: ServerConfig, results: list[Rounds], job: Job, output: Path) -> None:
    when = datetime.now(UTC)
    facts: dict[str, Any] = {
        "family": config.name,
        "when": when.isoformat(timespec="seconds"),
        "command": " ".join(["python -m eft_server.bench", *sys.argv[1:]]),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "prompt_tokens": len(job.prompts[0]),
        "generated_tokens": job.tokens,
        "results": [
            result.to_json() | {"bound_tokens_per_s": result.bound(config.members)} for result in results
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{config.name}-{when:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    console.print(f"Numbers: {path}")


if __name__ == "__main__":
    typer.run(main)
