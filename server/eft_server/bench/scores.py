"""`python -m eft_server.bench.scores`: the cost of scores, and of what they may bring, against log-probabilities."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from eft_client import Activations, EftClient
from eft_client.progress import Progress
from eft_server.bench.prompts import random_ids
from eft_server.bench.rounds import spread
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config
from eft_server.family.vocabulary import Vocabulary
from eft_server.local import load

Items: TypeAlias = list[dict[str, Any]]
Way: TypeAlias = Callable[[Items], object]

ONE = "prompt_logprobs of the composite"
EACH = "prompt_logprobs of the composite and of every member"
ALONE = "score, only the composite"
ALL = "score, the composite and every member"
MEASURED = "the same with statistics"
POOLED = "the same with the last token's activations, every layer of every member"
AVERAGED = "the same with the mean over tokens"
WHOLE = "the same with every token's, one layer of the base"
SINGLY = "the same, a request for each text"
EXPLAINED = "explain, a request for each text"

BESIDE = {**dict.fromkeys((MEASURED, POOLED, AVERAGED, WHOLE), ALL), SINGLY: SINGLY, EXPLAINED: SINGLY}
"""What each way is compared with, if not with ONE."""

WHOLE_BASE = Activations(layers=[0], members=["base"], pool="none")

console = Console()


def main(
    family: Annotated[str, typer.Argument(help="A bundled name or a YAML file")] = "demo",
    items: Annotated[int, typer.Option(help="Texts in a request", min=1)] = 8,
    prompt: Annotated[int, typer.Option(help="Prompt tokens before each completion", min=1)] = 96,
    completion: Annotated[int, typer.Option(help="Tokens to score per item", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every way once", min=1)] = 7,
) -> None:
    """Time ways to the same scores, on new texts each time; ratios are taken within a round.

    Those of the last two ways, which explain texts one by one, are to each other; those of ways with statistics or
    activations are to the same scores without; the others are to the first.
    """
    drawn = random.Random(0)
    config = load_config(family)
    settings = [f"server.max_prompts={max(items, 16)}", f"server.max_score_items={items}"]
    settings += ["server.activations=true", f"server.max_activation_bytes={1 << 30}"]
    vocabulary = inspect_family(config).vocabulary
    with load(family, overrides=settings) as client:
        ways = _ways(client, config.name, config.family.names)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with Progress() as progress:
            advance = progress.begin("measuring", (rounds + 1) * len(ways))
            for number in range(rounds + 1):
                for name in drawn.sample(list(ways), len(ways)):
                    taken = _time(ways[name], _texts(drawn, vocabulary, items, prompt, completion))
                    if number:  # The first round warms up.
                        seconds[name].append(taken)
                    advance(now=name)
    title = f"{items} × ({prompt} + {completion}) tokens"
    table = Table("way", "seconds, median", "×", "of", title=title)
    for name, values in seconds.items():
        other = BESIDE.get(name, ONE)
        ratios = [value / one for value, one in zip(values, seconds[other], strict=True)]
        table.add_row(name, f"{sorted(values)[len(values) // 2]:.3f}", spread(ratios), other)
    console.print(table)


def _ways(client: EftClient, family: str, members: tuple[str, ...]) -> Mapping[str, Way]:
    models = [family, *(f"{family}/{name}" for name in members)]
    return {
        ONE: lambda items: _echo(client, items, family),
        EACH: lambda items: [_echo(client, items, model) for model in models],
        ALONE: lambda items: client.score(items, members=False),
        ALL: client.score,
        MEASURED: lambda items: client.score(items, statistics=True),
        POOLED: lambda items: client.score(items, activations=Activations(layers="all")),
        AVERAGED: lambda items: client.score(items, activations=Activations(layers="all", pool="mean")),
        WHOLE: lambda items: client.score(items, activations=WHOLE_BASE),
        SINGLY: lambda items: [client.score([item]) for item in items],
        EXPLAINED: lambda items: [client.explain(**item) for item in items],
    }


def _echo(client: EftClient, items: Items, model: str) -> object:
    texts: Any = [
        [*item["prompt"], *item["completion"]] for item in items
    ]  # Several prompts are OpenAI's, too.
    return client.complete(texts, model=model, prompt_logprobs=0, max_tokens=1)


def _texts(drawn: random.Random, vocabulary: Vocabulary, items: int, prompt: int, completion: int) -> Items:
    sizes = {"prompt": prompt, "completion": completion}
    return [
        {name: random_ids(count, vocabulary, drawn) for name, count in sizes.items()} for _ in range(items)
    ]


def _time(way: Way, items: Items) -> float:
    start = time.perf_counter()
    way(items)
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
