"""`python -m eft_server.bench.scale`: what to expect of 2, 16 and 128 replicas, by the way of routing; a simulation."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.bench.rounds import spread
from eft_server.bench.scale.costs import CARDS, FAMILIES, ReplicaCosts
from eft_server.bench.scale.fleet import Fleet
from eft_server.bench.scale.routers import ROUTERS
from eft_server.bench.scale.workload import Traffic, conversations

console = Console()
console.width = max(console.width, 128)

WARM_UP = 1 / 3
"""The share of the time that is left out of the results, while caches fill."""


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        hit_percent: Tokens of prompts that were in a cache.
        ttft_p50_ms: Time to the first token, median.
        ttft_p99_ms: The same, 99th percentile.
        tokens_per_s: Output tokens each second, per replica.
        imbalance: Requests at the replica that had most, on average over the time, in units of the mean.
        unanswered_percent: Requests that had no first token when the time was over.
    """

    hit_percent: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tokens_per_s: float
    imbalance: float
    unanswered_percent: float


def simulate(costs: ReplicaCosts, count: int, router: str, traffic: Traffic, seed: int) -> Outcome:
    """Run a fleet over one drawing of the traffic."""
    fleet = Fleet(costs, count, ROUTERS[router](count, seed))
    fleet.run(conversations(traffic, seed), traffic.seconds)
    began_s = WARM_UP * traffic.seconds
    served = [one for one in fleet.served if one.arrived_s >= began_s]
    # A request that is not answered in the end has waited at least until then.
    ttft_s = [(traffic.seconds if np.isnan(one.first_s) else one.first_s) - one.arrived_s for one in served]
    begun = [one for one in served if not np.isnan(one.first_s)]
    stayed_s = np.zeros(count)
    for one in served:
        stayed_s[one.replica] += (traffic.seconds if np.isnan(one.ended_s) else one.ended_s) - one.arrived_s
    ended = [one for one in fleet.served if one.ended_s >= began_s]
    p50_s, p99_s = np.percentile(ttft_s, [50, 99])
    return Outcome(
        hit_percent=100 * sum(one.cached for one in begun) / sum(one.prompt for one in begun),
        ttft_p50_ms=1000 * float(p50_s),
        ttft_p99_ms=1000 * float(p99_s),
        tokens_per_s=sum(one.answer for one in ended) / (traffic.seconds - began_s) / count,
        imbalance=float(stayed_s.max() / stayed_s.mean()),
        unanswered_percent=100 * (1 - len(begun) / len(served)),
    )


def main(
    replicas: Annotated[list[int] | None, typer.Option(help="Replicas; may be repeated", min=1)] = None,
    family: Annotated[str, typer.Option(help=f"One of {', '.join(FAMILIES)}")] = "qwen25-7b",
    card: Annotated[str, typer.Option(help=f"One of {', '.join(CARDS)}")] = "h100",
    rate: Annotated[float, typer.Option(help="Conversations a second for each replica", min=0.001)] = 8.0,
    seconds: Annotated[float, typer.Option(help="Simulated seconds", min=1)] = 120.0,
    seeds: Annotated[int, typer.Option(help="Drawings of the traffic", min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for a plot")] = None,
) -> None:
    """Simulate replicas behind a router, by the number of replicas and the way of routing.

    The time of a step follows from a card's published numbers by a model: nothing is measured.
    """
    for name, known in ((family, FAMILIES), (card, CARDS)):
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    counts = replicas or [2, 16, 128]
    costs = ReplicaCosts(FAMILIES[family], CARDS[card])
    results: dict[tuple[int, str], list[Outcome]] = {}
    with Progress() as progress:
        advance = progress.begin("simulating", len(counts) * len(ROUTERS) * seeds)
        for count, router in product(counts, ROUTERS):
            traffic = Traffic(rate * count, seconds)
            runs = results[count, router] = []
            for seed in range(seeds):
                runs.append(simulate(costs, count, router, traffic, seed))
                advance(now=f"{count} replicas, {router}")
    title = (
        f"{family} on {card}: {costs.kv_tokens:,} tokens of KV a replica, {rate:g} conversations/s a replica"
    )
    _print(title, results)
    if output is not None:
        facts = [
            {"replicas": count, "router": router, "runs": [asdict(run) for run in runs]}
            for (count, router), runs in results.items()
        ]
        output.write_text(json.dumps(facts, indent=1) + "\n")
    if plot is not None:
        _draw(plot, counts, results)


def _columns(runs: Sequence[Outcome]) -> Iterator[str]:
    for name, digits in (
        ("hit_percent", 0),
        ("ttft_p50_ms", 0),
        ("ttft_p99_ms", 0),
        ("tokens_per_s", 0),
        ("imbalance", 2),
        ("unanswered_percent", 1),
    ):
        yield spread([getattr(run, name) for run in runs], digits)


def _print(title: str, results: dict[tuple[int, str], list[Outcome]]) -> None:
    table = Table(
        "replicas", "router", "hits, %", "TTFT p50, ms", "p99, ms", "tokens/s", "imbalance", title=title
    )
    table.add_column("unanswered, %")
    for (count, router), runs in results.items():
        table.add_row(str(count), router, *_columns(runs))
    console.print(table)


def _draw(path: Path, counts: Sequence[int], results: dict[tuple[int, str], list[Outcome]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    names = {"hit_percent": "tokens of prompts in a cache, %", "ttft_p99_ms": "TTFT p99, ms"}
    names["imbalance"] = "requests at the fullest replica / mean"
    places = range(len(counts))
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for index, router in enumerate(ROUTERS):
            runs = [[getattr(run, name) for run in results[count, router]] for count in counts]
            middles = [statistics.median(values) for values in runs]
            reach = [
                [middle - min(values) for middle, values in zip(middles, runs, strict=True)],
                [max(values) - middle for middle, values in zip(middles, runs, strict=True)],
            ]
            at = [place + (index - 1.5) * 0.2 for place in places]
            axes.bar(at, middles, 0.18, yerr=reach, label=router, error_kw={"elinewidth": 1})
        axes.set_xticks(places, [f"{count} replicas" for count in counts])
        axes.set_ylabel(label)
    panels[1].set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
