"""All that crosses the processes: the family, inside the base's config, and requests, in their `SamplingParams`.

Shape suffixes: M members, C scored tokens, K vectors, W numbers of a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from eft_server.engine.worker.columns import counting

KEY = "eft"
"""The config attribute, and the key of `SamplingParams.extra_args`, that hold this project's values."""

SEPARATOR = "@"
"""Ends a member's name where it prefixes a weight's name; no checkpoint uses it."""

_PROMPTS_KEY = "eft_prompts"
_SCORING_KEY = "eft_scoring"


@dataclass(frozen=True)
class MemberWeights:
    """A member's name and where its weights are (a local directory or a hub id with its revision).

    Under tensor parallelism it is whole on every rank, unless it is sharded over them. Where `reference` names another
    member, the weights are an adapter on that one.
    """

    name: str
    model: str
    revision: str | None = None
    sharded: bool = False
    reference: str | None = None

    @property
    def weight_prefix(self) -> str:
        """What vLLM's loader puts before each of this member's weight names."""
        return f"{self.name}{SEPARATOR}"


@dataclass(frozen=True)
class Manifest:
    """The family as the engine needs it.

    Attributes:
        architectures: of the base's own model, since ours takes their place in its config.
        base: the base's name; its checkpoint is the engine's own.
        members: the other members, in the order of the coefficients.
        unshared: half-open ranges of token ids that not all members share.
        draft: the member that drafts in speculative decoding, if one does.
        defaults: the family's own vector (see `coefficients`), for steps without requests, such as profiling.
        rows: how many token ids each member can read, in the order of the coefficients.
    """

    architectures: tuple[str, ...]
    members: tuple[MemberWeights, ...]
    unshared: tuple[tuple[int, int], ...]
    defaults: tuple[float, ...]
    rows: tuple[int, ...]
    base: str = "base"
    draft: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The members', the base first: the order of the coefficients."""
        return (self.base, *(item.name for item in self.members))

    @property
    def width(self) -> int:
        """W: how many numbers a vector is."""
        return len(self.defaults)

    def place(self, name: str) -> int:
        """A member's place in that order."""
        return self.names.index(name)

    def unshared_ids(self) -> Iterator[int]:
        """Every id that not all members share, ascending."""
        for start, stop in self.unshared:
            yield from range(start, stop)

    def to_hf(self) -> dict[str, Any]:
        """As plain values for `hf_overrides`."""
        return asdict(self)

    @classmethod
    def from_hf(cls, config: object) -> "Manifest":
        """Read it back from a Hugging Face config.

        Raises:
            ValueError: the config carries none, so the engine was not started through `eft_server`.
        """
        raw = getattr(config, KEY, None)
        if not isinstance(raw, dict):
            raise ValueError(
                f"the model config has no {KEY!r} entry: start the engine through eft_server.engine.launcher.launch"
            )
        return cls(
            architectures=tuple(raw["architectures"]),
            members=tuple(MemberWeights(**member) for member in raw["members"]),
            unshared=tuple((start, stop) for start, stop in raw["unshared"]),
            defaults=tuple(raw["defaults"]),
            rows=tuple(raw["rows"]),
            base=raw["base"],
            draft=raw["draft"],
        )


@dataclass(frozen=True)
class Prompts:
    """The members' own prompts of one request.

    Attributes:
        tokens_M: each member's prompt, in the order of the coefficients.
    """

    tokens_M: tuple[np.ndarray, ...]

    @cached_property
    def length(self) -> int:
        """L: how long the scheduler's prompt is."""
        return max(len(tokens) for tokens in self.tokens_M)

    def offset(self, member: int) -> int:
        """How far a member is behind the scheduler's positions, in tokens."""
        return self.length - len(self.tokens_M[member])


@dataclass(frozen=True)
class Scoring:
    """What is to be scored of a request.

    Attributes:
        first: the scheduler's position whose row is the first token's: the prompt's last.
        targets: the tokens, C of them.
        vectors: under which they are scored, K times `Coefficients.numbers`; the first is the request's own.
    """

    first: int
    targets: tuple[int, ...]
    vectors: tuple[tuple[float, ...], ...]

    @property
    def stop(self) -> int:
        """The position behind the last row, which is the length of the engine's prompt."""
        return self.first + len(self.targets)


def extra_args(
    numbers: Sequence[float],
    prompts: Sequence[Sequence[int]] | None = None,
    scoring: Scoring | None = None,
) -> dict[str, Any]:
    """Write what `EngineRequest.read` reads: a request's `SamplingParams.extra_args`.

    Args:
        numbers: its vector, `Coefficients.numbers`.
        prompts: each member's prompt, where they do not all read the engine's.
        scoring: what is to be scored, if anything.
    """
    written: dict[str, Any] = {KEY: list(numbers)}
    if prompts is not None:
        written[_PROMPTS_KEY] = [list(tokens) for tokens in prompts]
    if scoring is not None:
        written[_SCORING_KEY] = {
            "first": scoring.first,
            "targets": list(scoring.targets),
            "vectors": [list(vector) for vector in scoring.vectors],
        }
    return written


@dataclass(frozen=True)
class EngineRequest:
    """A request as the scheduler and the model runners see it.

    Attributes:
        vector: W numbers.
        prompts: the members' own, None where all of them read the same.
        scoring: what is to be scored, None where nothing is.
        counting: by member, whether it makes a difference to what is sampled.
        reading: by member, whether what it reads makes a difference to any row of the request.
        needed: by member, whether it has to run for the request: those, and a member that drafts.
    """

    vector: tuple[float, ...]
    prompts: Prompts | None
    scoring: Scoring | None
    counting: tuple[bool, ...]
    reading: tuple[bool, ...]
    needed: tuple[bool, ...]

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None, manifest: Manifest) -> "EngineRequest":
        """Read it; what is missing or malformed becomes NaN (see `vector_of`).

        Args:
            extra_args: the request's.
            manifest: the family's.
        """
        vector = vector_of(extra_args, manifest.width)
        scoring = scoring_of(extra_args, manifest.width)
        vectors = (vector,) if scoring is None else (vector, *scoring.vectors)
        reading = _reading(vectors)
        drafting = manifest.place(manifest.draft) if manifest.draft is not None else None
        needed = tuple(reads or place == drafting for place, reads in enumerate(reading))
        return cls(vector, _prompts_of(extra_args), scoring, counting(vector), reading, needed)

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


def _reading(vectors: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    counted = [counting(vector) for vector in vectors]
    reading = [any(of_member) for of_member in zip(*counted, strict=True)]
    # A row that nothing counts in is all zeros; vLLM expects that somebody reads its tokens all the same.
    reading[0] |= not any(reading)
    return tuple(reading)


def vector_of(extra_args: Mapping[str, Any] | None, width: int) -> tuple[float, ...]:
    """Read a request's vector out of its `SamplingParams.extra_args`: W numbers, or M where it has no filter.

    The server validates before it sends. What is missing or malformed all the same must not pass for another
    request's setting and must not stop the engine: it becomes NaN, and the request fails as every non-finite one does.

    Args:
        extra_args: the request's.
        width: W.
    """
    vector: Any = (extra_args or {}).get(KEY)
    members = (width - 2) // 2
    try:
        values = tuple(float(value) for value in vector)
    except (TypeError, ValueError):
        values = ()
    if len(values) not in (members, width):
        values = (float("nan"),) * members
    return (*values, *(0.0,) * (width - len(values)))


def _prompts_of(extra_args: Mapping[str, Any] | None) -> Prompts | None:
    given = (extra_args or {}).get(_PROMPTS_KEY)
    return None if given is None else Prompts(tuple(np.asarray(tokens, dtype=np.int64) for tokens in given))


def scoring_of(extra_args: Mapping[str, Any] | None, width: int) -> Scoring | None:
    """Read what is to be scored of a request; None where nothing is. For the arguments see `vector_of`."""
    given = (extra_args or {}).get(_SCORING_KEY)
    if given is None:
        return None
    vectors = tuple(vector_of({KEY: numbers}, width) for numbers in given["vectors"])
    return Scoring(int(given["first"]), tuple(given["targets"]), vectors)


@dataclass(frozen=True)
class Scored:
    """What came out under one vector, for each of C tokens.

    Attributes:
        logprobs: the token's log-probability; −inf where it cannot be, NaN where the logits were not finite.
        ranks: 1 and the number of likelier tokens.
        likeliest: the log-probability of the likeliest token.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    likeliest: tuple[float, ...]


def scoring_params(scoring: Scoring, prompts: Sequence[Sequence[int]] | None = None) -> SamplingParams:
    """How the engine is asked: for one greedy token, which nobody reads, and for a prompt's log-probabilities.

    The engine's own prompt is the text without its last token: nobody needs the row behind that.

    Args:
        scoring: what is to be scored.
        prompts: each member's text, also without the last token, where they read texts of their own.
    """
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        # vLLM reads everything where a prompt's log-probabilities are wanted; here its beginning is not.
        skip_reading_prefix_cache=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args(scoring.vectors[0], prompts, scoring),
    )


def scored(output: RequestOutput, scoring: Scoring) -> tuple[Scored, ...]:
    """Read `Scores.tensors` out of what the engine answered, for each vector."""
    flat = output.prompt_logprobs
    count, width = len(scoring.vectors), len(scoring.targets)
    assert isinstance(flat, FlatLogprobs) and len(flat.logprobs) == 2 * count * width
    found = []
    for begin in range(0, count * width, width):
        own = slice(begin, begin + width)
        tops = slice(begin + count * width, begin + (count + 1) * width)
        ranks = tuple(rank or 0 for rank in flat.ranks[own])
        found.append(Scored(tuple(flat.logprobs[own]), ranks, tuple(flat.logprobs[tops])))
    return tuple(found)
