"""`python -m eft_server.bench.needed`: does a request pay only for the members that it needs?"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.behaviour.coefficients import Coefficients
from eft_server.behaviour.resolve import Behaviours
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import spread
from eft_server.bench.targets import Job, Target, composite, member
from eft_server.engine.launcher import fork_server
from eft_server.engine.launcher.plan import plan
from eft_server.environment import log_vllm
from eft_server.exits import errors_in_words
from eft_server.family.family import BASE
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import FamilyReport, inspect_family
from eft_server.family.load import load_config

COMPOSITE = "composite"
WORK = Path(".bench")

console = Console()


def main(
    family: Annotated[
        str,
        typer.Argument(help="A bundled name, a YAML file, or five: the demo's members, with five experts"),
    ] = "five",
    batch: Annotated[int, typer.Option(help="Batch size: requests at once", min=2)] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens to generate per request", min=8)] = 48,
    prompt: Annotated[int, typer.Option(help="Prompt tokens per request", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every batch once", min=1)] = 5,
    rest: Annotated[
        float,
        typer.Option(
            help="Seconds of rest before each measurement: vLLM's processes poll for 1 s after a step", min=0
        ),
    ] = 1.2,
) -> None:
    """Measure a composite with single members, with each expert up-scaled, and with all of these in one batch.

    Each batch is compared with its members in plain vLLM: if a member runs on n requests of a batch, the bound uses its
    speed at n requests at once. Ratios are taken within a round.
    """
    log_vllm(None)
    with errors_in_words():
        fork_server.start()
        config = load_config(str(_five(WORK / family)) if family == "five" else family)
        _measure(config, inspect_family(config), Workload(batch, tokens, prompt, rounds, rest))


@dataclass(frozen=True)
class Workload:
    """The workload, in requests, tokens and rounds; see `main`."""

    batch: int
    tokens: int
    prompt: int
    rounds: int
    rest_s: float


@dataclass(frozen=True)
class Asked:
    """A batch of requests, by their coefficients."""

    title: str
    vectors: tuple[Coefficients, ...]

    @property
    def needed(self) -> Counter[int]:
        """By member, the number of requests that need it."""
        return Counter(place for vector in self.vectors for place in vector.counting)


def _five(folder: Path) -> Path:
    """The demo's members, with five experts, which share two checkpoints."""
    demo = load_config("demo")
    experts = {name: str(demo.family[name].checkpoint.model) for name in demo.experts}
    models = list(experts.values())
    family = {
        "name": "five",
        "base": demo.base.model,
        "references": {"small": demo.family["small"].checkpoint.model},
        "experts": {f"expert{number}": models[number % len(models)] for number in range(5)},
        "vllm": {"dtype": "float32"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "five.yaml"
    path.write_text(yaml.safe_dump(family, sort_keys=False))
    return path


def _batches(config: ServerConfig, batch: int) -> Iterator[Asked]:
    behaviours = Behaviours(config)
    alone = {name: behaviours.resolve(f"{config.name}/{name}").coefficients for name in config.family.names}
    scaled = {
        name: behaviours.resolve(config.name, {"weights": {name: 1.0}}).coefficients
        for name in config.experts
    }
    for count in (1, batch):
        yield Asked(f"{BASE} alone, {count} at once", (alone[BASE],) * count)
    for name in config.family.names[1:]:
        yield Asked(f"{name} alone, {batch} at once", (alone[name],) * batch)
    for name, vector in scaled.items():
        yield Asked(f"{name} up-scaled, {batch} at once", (vector,) * batch)
    kinds = [alone[BASE], *scaled.values(), *(alone[name] for name in config.experts)]
    yield Asked(f"all of these, {batch} at once", tuple(kinds[i % len(kinds)] for i in range(batch)))


def _measure(config: ServerConfig, report: FamilyReport, sizes: Workload) -> None:
    asked = list(_batches(config, sizes.batch))
    planned = plan(config, report)
    with ExitStack() as stack:
        targets: dict[str, Target] = {}
        for name in config.family.names:  # Members with the same checkpoint share an engine.
            model = str(config.family[name].checkpoint.model)
            if model not in targets:
                targets[model] = member(name, config, planned)
                stack.callback(targets[model].close)
        targets[COMPOSITE] = composite(COMPOSITE, planned)
        stack.callback(targets[COMPOSITE].close)
        progress = stack.enter_context(Progress())
        started = progress.begin("starting engines", len(targets))
        for target in targets.values():
            target.wait_until_ready()
            started()
        table = Table(
            "what", "tokens/s", "of the bound", title=f"{config.name}, {sizes.rounds} rounds", min_width=60
        )
        measured = progress.begin("measuring", len(asked))
        for one in asked:
            rates, ratios = _rounds(one, config, report, sizes, targets)
            measured(now=one.title)
            table.add_row(one.title, spread(rates, 0), spread(ratios))
    console.print(table)


def _rounds(
    asked: Asked,
    config: ServerConfig,
    report: FamilyReport,
    sizes: Workload,
    targets: Mapping[str, Target],
) -> tuple[list[float], list[float]]:
    """The composite's tokens per second, and its share of the bound, by round."""
    drawn = random.Random(0)
    count = len(asked.vectors)
    rates, ratios = [], []
    for number in range(sizes.rounds + 1):
        prompts = [random_ids(sizes.prompt, report.vocabulary, drawn) for _ in range(count)]
        seconds: dict[tuple[str, int], float] = {}
        alone = {(str(config.family.members[m].checkpoint.model), n) for m, n in asked.needed.items()}
        measured: list[tuple[str, int]] = [*sorted(alone), (COMPOSITE, count)]
        for name, size in drawn.sample(measured, len(measured)):
            numbers = [vector.numbers for vector in asked.vectors] if name == COMPOSITE else None
            job = Job(prompts[:size], sizes.tokens, numbers)
            time.sleep(sizes.rest_s)
            seconds[name, size] = targets[name].time(job).seconds
        if number:  # The first warms up.
            bound_s = sum(
                seconds[str(config.family.members[m].checkpoint.model), n] for m, n in asked.needed.items()
            )
            rates.append(count * sizes.tokens / seconds[COMPOSITE, count])
            ratios.append(bound_s / seconds[COMPOSITE, count])
    return rates, ratios


if __name__ == "__main__":
    typer.run(main)
