"""The options of a run, in one place, and bounded."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eft_client.load.arrivals import MAX_ARRIVALS, ClosedLoop, Load, OpenLoop, Trace
from eft_client.load.errors import LoadError
from eft_client.load.prompts import PromptSource
from eft_client.load.targets import Target
from eft_client.text import finite_number

__all__ = ["DEFAULT_REQUESTS", "LIMITED", "Endpoint", "LoadOptions", "read_limits"]

Endpoint = Literal["chat", "completions"]

DEFAULT_REQUESTS = 64

#: The figures that goodput may set limits on.
LIMITED = ("ttft_ms", "tpot_ms", "e2e_ms")

#: Fields of a request that the benchmark itself sets, and how they are set.
_OWN = {
    "eft": "--setting",
    "max_tokens": "--output-tokens",
    "messages": "--prompts",
    "model": "--setting",
    "prompt": "--prompts",
    "stream": "always on",
    "temperature": "--temperature",
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A run.

    Attributes:
        targets: what is measured.
        baseline: the name of the one that the others are compared with.
        loads: those to measure under.
        prompts: their source.
        requests: requests a round. Where neither this nor a duration is given, 64, or all arrivals of a trace.
        duration_s: seconds in which a round sends requests.
        repeats: rounds of each target under each load.
        warm_up: requests to each target before the first round, in no figure.
        endpoint: which of OpenAI's.
        max_tokens: for prompts that have none.
        temperature: None leaves it to the server.
        body: further fields of every request.
        timeout_s: for a whole request.
        seed: of prompts, lengths, arrivals and mixes.

    Raises:
        LoadError: They don't go together; the message names the value and what was expected.
    """

    targets: tuple[Target, ...]
    baseline: str
    loads: tuple[Load, ...]
    prompts: PromptSource
    requests: int | None = None
    duration_s: float | None = None
    repeats: int = 3
    warm_up: int = 4
    endpoint: Endpoint = "chat"
    max_tokens: int = 32
    temperature: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [target.name for target in self.targets]
        if self.baseline not in names:
            raise LoadError(f"--baseline {self.baseline!r} is none of the targets: {', '.join(names)}")
        if self.requests is not None and self.duration_s is not None:
            raise LoadError("expected --requests or --duration, not both")
        labels = [load.label for load in self.loads]
        for label in labels:
            if labels.count(label) > 1:
                raise LoadError(f"{label} is asked for twice")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise LoadError(f"--temperature {self.temperature}: expected a finite number from 0")
        for load in self.loads:
            if isinstance(load, OpenLoop) and load.rate_per_s * (self.duration_s or 0) > MAX_ARRIVALS:
                raise LoadError(
                    f"{load.label} for {self.duration_s:g} s: more than {MAX_ARRIVALS:,} requests a round"
                )
        for key in self.body:
            if key in _OWN:
                raise LoadError(f"--body: {key!r} cannot be set there (see {_OWN[key]})")
        if self.body.get("n", 1) != 1:
            raise LoadError(
                f"--body: n={self.body['n']!r}: several answers a request cannot be timed; leave it out"
            )

    def arrivals_s(self, load: OpenLoop | Trace, rng: random.Random) -> list[float]:
        """When the requests of one round of an open loop are to be sent, in seconds from its start."""
        if isinstance(load, Trace):
            within = [time for time in load.times_s if self.duration_s is None or time <= self.duration_s]
            return within[: self.requests]
        count = self.requests if self.duration_s is None else max(1, round(load.rate_per_s * self.duration_s))
        return load.arrivals_s(count or DEFAULT_REQUESTS, rng)

    def planned(self, load: Load) -> int | None:
        """How many requests a round has; None where its duration decides."""
        if isinstance(load, ClosedLoop):
            return None if self.duration_s is not None else self.requests or DEFAULT_REQUESTS
        return len(self.arrivals_s(load, random.Random(0)))


def read_limits(words: list[str]) -> dict[str, float]:
    """Goodput's limits from words like `ttft_ms=500`.

    Raises:
        LoadError: A word has another form or names another figure.
    """
    limits: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        limit = finite_number(value)
        if name not in LIMITED or limit is None or limit <= 0:
            raise LoadError(
                f"--goodput {word!r}: expected FIGURE=MILLISECONDS with one of {', '.join(LIMITED)}"
            )
        if name in limits:
            raise LoadError(f"--goodput {word!r}: {name} is named twice")
        limits[name] = limit
    return limits
