"""`python -m eft_server.bench.start`: how long a server takes to start, against a bare import of vLLM."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.bench.rounds import spread

console = Console()

BARE = "import vllm.v1.engine.async_llm"
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
WAYS = {"forked": {}, "vLLM's own": {METHOD: "spawn"}}
"""How an engine's processes are started, as environment variables."""

TIMEOUT_S = 600.0
POLL_S = 0.05
PROMPT = "The quick brown fox"
TOKENS = 64
BATCHES = (1, 8)
MIB = 1 << 20


@dataclass(frozen=True)
class Started:
    """One start of a server.

    Attributes:
        healthy_s: From the command to the first 200 of /health.
        resident_bytes: Resident memory of its processes, added up.
        shared_once_bytes: The same, with pages that several of them share counted once.
        tokens_per_s: Tokens generated per second at the batch sizes of `BATCHES`, in order.
        text: A greedy answer.
    """

    healthy_s: float
    resident_bytes: int
    shared_once_bytes: int
    tokens_per_s: list[float]
    text: str


def main(
    family: Annotated[str, typer.Argument(help="A bundled family or a YAML file")] = "demo",
    rounds: Annotated[int, typer.Option(help="Rounds; each measures every way once", min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measure how long a start takes.

    A round is a bare import of vLLM in a new interpreter, then a server whose processes are forked, then one whose
    processes vLLM starts in its usual way. A server should be healthy within 1.3 times the import plus 8 s.
    """
    imports_s: list[float] = []
    started: dict[str, list[Started]] = {way: [] for way in WAYS}
    with Progress() as progress:
        advance = progress.begin("measuring", rounds * (1 + len(WAYS)))
        for _ in range(rounds):
            imports_s.append(_bare_import_s())
            advance(now="a bare import")
            for way, variables in WAYS.items():
                started[way].append(_start(family, variables))
                advance(now=way)
    _print(family, imports_s, started)
    if output is not None:
        facts = {
            "import_s": imports_s,
            **{way: [asdict(one) for one in runs] for way, runs in started.items()},
        }
        output.write_text(json.dumps(facts, indent=1) + "\n")


def _bare_import_s() -> float:
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True)
    return time.perf_counter() - began_s


def _start(family: str, variables: dict[str, str]) -> Started:
    with _serving(family, variables) as (process, url, healthy_s):
        rates = [_tokens_per_s(url, batch) for batch in BATCHES]
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        memory = [one.memory_full_info() for one in everybody]
        return Started(
            healthy_s=healthy_s,
            resident_bytes=sum(one.rss for one in memory),
            shared_once_bytes=sum(one.pss for one in memory),
            tokens_per_s=rates,
            text=_complete(url),
        )


@contextlib.contextmanager
def _serving(family: str, variables: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A server, its URL, and the time until it was healthy."""
    command = [str(Path(sys.executable).with_name("eft")), "serve", family, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != METHOD} | variables
    began_s = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" at (http://\S+) ", process.stdout.readline())
            if found is None:
                raise RuntimeError(f"the server did not start; for its errors run `eft serve {family}`")
            while not _is_healthy(found[1]):
                if time.perf_counter() - began_s > TIMEOUT_S:
                    raise RuntimeError(f"the server was not healthy within {TIMEOUT_S:g} s")
                time.sleep(POLL_S)
            yield process, found[1], time.perf_counter() - began_s
        finally:
            process.terminate()


def _is_healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    return False


def _tokens_per_s(url: str, batch: int) -> float:
    """The best of five runs: the first ones warm up, and copy pages that processes no longer share."""
    rates = []
    for _ in range(5):
        began_s = time.perf_counter()
        with ThreadPoolExecutor(batch) as pool:
            list(pool.map(lambda _: _complete(url), range(batch)))
        rates.append(batch * TOKENS / (time.perf_counter() - began_s))
    return max(rates)


def _complete(url: str) -> str:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT_S)
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


def _print(family: str, imports_s: Sequence[float], started: dict[str, list[Started]]) -> None:
    table = Table("", *started, title=f"{family}: a start beside a bare `{BARE}` of {spread(imports_s)} s")
    runs = started.values()
    healthy_s = [[one.healthy_s for one in ways] for ways in runs]
    table.add_row("healthy after, s", *map(spread, healthy_s))
    bounds_s = [1.3 * import_s + 8 for import_s in imports_s]
    ratios = [[ours / bound for ours, bound in zip(ways, bounds_s, strict=True)] for ways in healthy_s]
    table.add_row("of 1.3 × import + 8 s", *map(spread, ratios))
    for title, name in (("resident", "resident_bytes"), ("shared pages once", "shared_once_bytes")):
        sizes = [[getattr(one, name) / MIB for one in ways] for ways in runs]
        table.add_row(f"memory, {title}, MiB", *(spread(ways, 0) for ways in sizes))
    for index, batch in enumerate(BATCHES):
        rates = [[one.tokens_per_s[index] for one in ways] for ways in runs]
        table.add_row(f"tokens/s, {batch} at once", *(spread(ways, 0) for ways in rates))
    console.print(table)
    texts = {one.text for ways in runs for one in ways}
    console.print("All greedy answers are equal." if len(texts) == 1 else f"Greedy answers differ: {texts}")


if __name__ == "__main__":
    typer.run(main)
