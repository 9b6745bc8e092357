"""`python -m eft_server.bench.reports`: what `eft.report` costs those who ask for it, and those beside them."""

import os
import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.behaviour.resolve import Behaviours
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import spread
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config
from eft_server.family.vocabulary import Vocabulary

_PROMPT_TOKENS = 16

console = Console()


class ReportBatch(NamedTuple):
    """Requests of one model that are generated at once.

    Attributes:
        model: the name that they ask for.
        size: how many there are.
        asking: how many of them ask for a report.
    """

    model: str
    size: int
    asking: int


def batches(models: Sequence[str], sizes: Sequence[int]) -> list[list[ReportBatch]]:
    """The batches that are compared with each other: of each model and size one in which none, one or all ask."""
    return [
        [ReportBatch(model, size, asking) for asking in sorted({0, 1, size})]
        for model in models
        for size in sizes
    ]


def main(
    family: Annotated[str, typer.Argument(help="A bundled name or a YAML file")] = "demo",
    size: Annotated[list[int], typer.Option(help="Requests at once; may be repeated", min=1)] = [1, 16],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="Tokens to generate for each", min=1)] = 48,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every batch once", min=1)] = 15,
) -> None:
    """Generate with and without reports in turns, by the composite and by its last expert.

    The engine runs in this process, whose CPU time varies less on a shared machine than the time on the clock. Ratios
    to the batch in which nobody asks are taken within a round.
    """
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from eft_server.engine.launcher import fork_server
    from eft_server.engine.launcher.launch import open_offline
    from eft_server.engine.launcher.plan import plan

    config = load_config(family)
    report = inspect_family(config)
    models = [config.name, f"{config.name}/{list(config.experts)[-1]}"]
    numbers = {name: Behaviours(config).resolve(name).coefficients.numbers for name in models}
    fork_server.start()
    llm, drawn = open_offline(plan(config, report)), random.Random(0)
    groups = batches(models, size)
    found: dict[ReportBatch, list[tuple[float, float]]] = {batch: [] for group in groups for batch in group}
    with Progress() as progress:
        advance = progress.begin("measuring", (rounds + 1) * len(found))
        for number in range(rounds + 1):
            for batch in drawn.sample(list(found), len(found)):
                timed = _timed(llm, batch, numbers[batch.model], report.vocabulary, tokens, drawn)
                if number:  # The first round warms up.
                    found[batch].append(timed)
                advance(now=f"{batch.model}, {batch.asking} of {batch.size}")
    console.print(_table(groups, found, tokens))


def _table(
    groups: Sequence[Sequence[ReportBatch]], found: dict[ReportBatch, list[tuple[float, float]]], tokens: int
) -> Table:
    table = Table("model", "asking", "tokens / CPU s", "× nobody asks: CPU time", "× nobody asks: time")
    for nobody, *others in groups:
        for batch in (nobody, *others):
            cpu_s, clock_s = zip(*found[batch], strict=True)
            ratios = (
                [value / one for value, one in zip(values, base, strict=True)]
                for values, base in zip((cpu_s, clock_s), zip(*found[nobody], strict=True), strict=True)
            )
            rate = f"{batch.size * tokens / median(cpu_s):.1f}"
            table.add_row(batch.model, f"{batch.asking} of {batch.size}", rate, *map(spread, ratios))
    return table


def _timed(  # noqa: PLR0913 (what a measurement needs)
    llm: Any,
    batch: ReportBatch,
    numbers: Sequence[float],
    vocabulary: Vocabulary,
    tokens: int,
    drawn: random.Random,
) -> tuple[float, float]:
    """The CPU time and the time on the clock that a batch takes, in seconds."""
    from vllm import SamplingParams

    from eft_server.engine.message import extra_args

    prompts = [{"prompt_token_ids": random_ids(_PROMPT_TOKENS, vocabulary, drawn)} for _ in range(batch.size)]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=extra_args(numbers, report=index < batch.asking),
        )
        for index in range(batch.size)
    ]
    cpu_s, clock_s = time.process_time(), time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.process_time() - cpu_s, time.perf_counter() - clock_s


if __name__ == "__main__":
    typer.run(main)
