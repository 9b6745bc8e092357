"""`python -m eft_server.bench`: the table, and the numbers behind it as JSON."""

import json
import os
import platform
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.batch.requests import parse_weights
from eft_server.behaviour.resolve import Behaviours
from eft_server.bench import shapes, smollm2
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import Rounds, run, spread
from eft_server.bench.targets import Job, Target, Timed, Variant, composite, loop, member
from eft_server.engine.launcher import fork_server
from eft_server.engine.launcher.plan import plan
from eft_server.environment import log_vllm
from eft_server.errors import ConfigError
from eft_server.exits import errors_in_words
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import FamilyReport, inspect_family
from eft_server.family.load import load_config
from eft_server.family.vocabulary import Vocabulary

COMPOSITE, LOOP = "composite", "transformers loop"
FILTERED = {kind: f"composite, {kind} filter" for kind in ("expert", "base")}
APART = "composite, own prompts"
WORK = Path(".bench")

console = Console(width=None if sys.stdout.isatty() else 140)


def main(
    families: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Bundled names, YAML files, smollm2, {', '.join(shapes.SHAPES)} (default: demo smollm2)"
        ),
    ] = None,
    batch: Annotated[list[int], typer.Option(help="Batch size: requests at once; may be repeated")] = [
        1,
        4,
        16,
    ],
    tokens: Annotated[int, typer.Option(help="Tokens to generate per request", min=8)] = 48,
    prompt: Annotated[int, typer.Option(help="Prompt tokens per request", min=1)] = 32,
    prefill: Annotated[
        int, typer.Option(help="Prompt tokens per request when prefill is measured; 0 skips it", min=0)
    ] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every target once", min=1)] = 5,
    rest: Annotated[
        float,
        typer.Option(
            help="Seconds of rest before each measurement: vLLM's processes poll for 1 s after a step, and would "
            "share the cores with the next target",
            min=0,
        ),
    ] = 1.2,
    draft: Annotated[str | None, typer.Option(help="Member that drafts (default: the first expert)")] = None,
    drafted: Annotated[
        list[int], typer.Option(help="Tokens that it drafts at a time; may be repeated", min=1)
    ] = [3],
    weights: Annotated[
        list[str] | None,
        typer.Option(help="expert=number,…: weights to measure besides the defaults; may be repeated"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON")] = Path("bench-results"),
) -> None:
    """Measure greedy decoding and prefill of the composite, its members and a transformers loop, in turns.

    The targets are the base and every other member in plain vLLM; the composite, with and without speculative
    decoding; and a loop over the same models in transformers. The bound is the speed of a composite without overhead:
    1 / Σ 1/tps over its members. Ratios are taken within a round, since the machine's speed may change between rounds.
    """
    log_vllm(None)
    with errors_in_words():
        fork_server.start()
        for family in families or ["demo", "smollm2"]:
            config = load_config(_path(family))
            report = inspect_family(config)
            vectors = _vectors(config, weights or ())
            measured = Measured(batch, tokens, prompt, prefill, rounds, rest, report.vocabulary, vectors)
            speculation = Speculation(draft or next(iter(config.experts)), drafted)
            _measure(config, report, measured, speculation, output)


@dataclass(frozen=True)
class Measured:
    """The workload: batch sizes, tokens to read and generate, and the family's weights.

    Attributes:
        batches: requests at once.
        tokens: tokens to generate per request.
        prompt: prompt tokens per request.
        prefill: prompt tokens per request when prefill is measured.
        rounds: number of rounds.
        rest_s: seconds of rest before each measurement.
        vocabulary: the ids of random prompts.
        vectors: coefficients for the composite besides the family's defaults, by name.
    """

    batches: Sequence[int]
    tokens: int
    prompt: int
    prefill: int
    rounds: int
    rest_s: float
    vocabulary: Vocabulary
    vectors: Mapping[str, tuple[float, ...]]

    def jobs(self) -> Iterator[tuple[str, list[Job]]]:
        """Each measurement's title and its jobs; the first job warms up."""
        shuffled = random.Random(0)
        for size in self.batches:
            prompts = self._prompts(size, self.prompt, shuffled)
            short, whole = Job(prompts, max(4, self.tokens // 8)), Job(prompts, self.tokens)
            yield f"batch {size}", [short, *(whole for _ in range(self.rounds))]
            for title, vector in self.vectors.items():
                other = replace(whole, vectors=[vector])
                yield f"batch {size}, {title}", [short, *(other for _ in range(self.rounds))]
        for size in self.batches if self.prefill else ():
            fresh = [self._prompts(size, self.prefill, shuffled) for _ in range(self.rounds + 1)]
            yield f"batch {size}", [Job(prompts, 1) for prompts in fresh]

    def _prompts(self, count: int, length: int, shuffled: random.Random) -> list[list[int]]:
        return [random_ids(length, self.vocabulary, shuffled) for _ in range(count)]


@dataclass(frozen=True)
class Speculation:
    """The member that drafts, and how many tokens at a time; each number makes a separate target."""

    draft: str
    tokens: Sequence[int]

    def name(self, tokens: int) -> str:
        """The name of the target that drafts this number of tokens."""
        return f"composite, {self.draft} drafts {tokens}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all such targets."""
        return tuple(self.name(tokens) for tokens in self.tokens)


def _vectors(config: ServerConfig, asked: Sequence[str]) -> dict[str, tuple[float, ...]]:
    behaviours = Behaviours(config)
    weights = {text: parse_weights(text) for text in asked}
    return {
        text: behaviours.resolve(config.name, {"weights": value}).coefficients.numbers
        for text, value in weights.items()
    }


def _path(family: str) -> str:
    """The family's file; generated families are written first."""
    if family == "smollm2":
        return str(smollm2.write_family(WORK / family))
    return str(shapes.write_family(family, WORK / family)) if family in shapes.SHAPES else family


def _measure(
    config: ServerConfig, report: FamilyReport, measured: Measured, speculation: Speculation, output: Path
) -> None:
    with ExitStack() as stack:
        targets = _with_variants(config, _start(config, report, speculation, stack))
        planned = list(measured.jobs())
        with Progress() as progress:
            advance = progress.begin("measuring", len(planned) * measured.rounds * len(targets))
            results = [
                run(title, targets, jobs, lambda name: advance(now=name), rest_s=measured.rest_s)
                for title, jobs in planned
            ]
    for verb, reading in (("generated", False), ("read", True)):
        if of_kind := [result for result in results if result.reading == reading]:
            _print(f"{config.name}: tokens {verb} per second", config, speculation, of_kind)
    _save(config, results, measured, output)


def _start(
    config: ServerConfig, report: FamilyReport, speculation: Speculation, stack: ExitStack
) -> dict[str, Target]:
    if config.family.adapters:
        names = ", ".join(member.name for member in config.family.adapters)
        raise ConfigError(
            f"each member runs by itself here: merge the adapters into checkpoints first ({names})"
        )
    starting = list(_targets(config, report, speculation, stack))
    with Progress() as progress:
        advance = progress.begin(f"{config.name}: starting", len(starting))
        for target in starting:
            target.wait_until_ready()
            advance(now=target.name)
    return {target.name: target for target in starting}


def _targets(
    config: ServerConfig, report: FamilyReport, speculation: Speculation, stack: ExitStack
) -> Iterator[Target]:
    """Start the processes of all targets."""

    def stopped(target: Target) -> Target:
        stack.callback(target.close)
        return target

    plain = plan(config.model_copy(update={"speculative": None}), report)
    for name in config.family.names:
        yield stopped(member(name, config, plain))
    yield stopped(composite(COMPOSITE, plain))
    for tokens in speculation.tokens:
        drafting = config.model_dump() | {"speculative": {"draft": speculation.draft, "tokens": tokens}}
        planned = plan(ServerConfig.model_validate(drafting), report)
        yield stopped(composite(speculation.name(tokens), planned))
    yield stopped(loop(LOOP, config, Behaviours(config).resolve(config.name).coefficients.members))


def _with_variants(config: ServerConfig, targets: dict[str, Target]) -> dict[str, Timed]:
    """Three more variants of the composite: with a filter of each kind on every row, and with per-member prompts."""
    behaviours = Behaviours(config)
    filters = {name: {"filter": {"kind": kind, "top_p": 0.9}} for kind, name in FILTERED.items()}
    vectors = {name: behaviours.resolve(config.name, asked).coefficients for name, asked in filters.items()}
    skipped = (0, *(8 for _ in config.family.names[1:]))
    composite = targets[COMPOSITE]
    return {
        **targets,
        **{name: Variant(composite, {"vectors": [vector.numbers]}) for name, vector in vectors.items()},
        APART: Variant(composite, {"skipped": skipped}),
    }


def _print(title: str, config: ServerConfig, speculation: Speculation, results: list[Rounds]) -> None:
    """Print one table, with a column for each result."""
    rounds = len(results[0].tokens_per_s[COMPOSITE])
    table = Table(title=f"{title}, median of {rounds} round{'s' * (rounds > 1)}")
    table.add_column("")
    for result in results:
        table.add_column(result.title, justify="right")
    for name in results[0].tokens_per_s:
        table.add_row(name, *(f"{result.median(name):.1f}" for result in results))
    bounds = [result.bound(config.family.names) for result in results]
    table.add_section()
    pairs = list(zip(results, bounds, strict=True))
    table.add_row("composite / bound", *(spread(result.ratios(COMPOSITE, bound)) for result, bound in pairs))
    table.add_row("composite / loop", *(spread(_against(result, COMPOSITE, LOOP)) for result in results))
    for name in (*speculation.names, *FILTERED.values(), APART):
        against = (spread(_against(result, name, COMPOSITE)) for result in results)
        table.add_row(f"{name.removeprefix('composite, ')} / composite", *against)
    for name in speculation.names:
        shares = [result.acceptance(name) for result in results]
        if any(share is not None for share in shares):
            accepted = ("" if share is None else f"{share:.0%}" for share in shares)
            table.add_row(f"{name.removeprefix('composite, ')}: acceptance rate", *accepted)
    console.print(table)


def _against(result: Rounds, name: str, other: str) -> list[float]:
    return result.ratios(name, result.tokens_per_s[other])


def _save(config: ServerConfig, results: list[Rounds], measured: Measured, output: Path) -> None:
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
        "prompt_tokens": measured.prompt,
        "generated_tokens": measured.tokens,
        "read_tokens": measured.prefill,
        "results": [
            result.to_json() | {"bound_tokens_per_s": result.bound(config.family.names)} for result in results
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{config.name}-{when:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    console.print(f"Numbers: {path}")


if __name__ == "__main__":
    typer.run(main)
