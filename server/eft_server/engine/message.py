"""What a request brings to the engine, read once out of its `SamplingParams.extra_args`.

Shape suffixes: M members, W numbers of a mixture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eft_server.engine.coefficients import counting, mixture_of
from eft_server.engine.manifest import Manifest
from eft_server.engine.prompts import Prompts, prompts_of
from eft_server.engine.scoring import Scoring, scoring_of


@dataclass(frozen=True)
class EngineRequest:
    """A request as the scheduler and the model runners see it.

    Attributes:
        mixture: W numbers.
        prompts: the members' own, None where all of them read the same.
        scoring: what is to be scored, None where nothing is.
        counting: by member, whether it makes a difference to what is sampled.
        reading: by member, whether what it reads makes a difference to any row of the request.
        needed: by member, whether it has to run for the request: those, and a member that drafts.
    """

    mixture: tuple[float, ...]
    prompts: Prompts | None
    scoring: Scoring | None
    counting: tuple[bool, ...]
    reading: tuple[bool, ...]
    needed: tuple[bool, ...]

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None, manifest: Manifest) -> "EngineRequest":
        """Read it; what is missing or malformed becomes NaN (see `mixture_of`).

        Args:
            extra_args: the request's.
            manifest: the family's.
        """
        mixture = mixture_of(extra_args, manifest.width)
        scoring = scoring_of(extra_args, manifest.width)
        mixtures = (mixture,) if scoring is None else (mixture, *scoring.mixtures)
        reading = _reading(mixtures)
        drafting = manifest.place(manifest.draft) if manifest.draft is not None else None
        needed = tuple(reads or place == drafting for place, reads in enumerate(reading))
        return cls(mixture, prompts_of(extra_args), scoring, counting(mixture), reading, needed)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """By member, how far it is behind the scheduler's positions, in tokens."""
        if self.prompts is None:
            return (0,) * len(self.needed)
        return tuple(self.prompts.offset(member) for member in range(len(self.needed)))

    @cached_property
    def length(self) -> int:
        """How many tokens of prompts of their own the members read, by the scheduler's positions."""
        return 0 if self.prompts is None else self.prompts.length

    @cached_property
    def members(self) -> frozenset[int]:
        """The places of the members that it needs."""
        return frozenset(np.flatnonzero(self.needed).tolist())


def _reading(mixtures: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    counted = [counting(mixture) for mixture in mixtures]
    reading = [any(of_member) for of_member in zip(*counted, strict=True)]
    # A row that nothing counts in is all zeros; vLLM expects that somebody reads its tokens all the same.
    reading[0] |= not any(reading)
    return tuple(reading)
