"""All data between the processes: the family, inside the base's config, and requests, in their `SamplingParams`.

Shape suffixes: M members, C scored tokens, K vectors, L the leading ones of these, N likely tokens, W numbers of a
vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from eft_server.engine.activations import Activations
from eft_server.engine.worker.columns import counting

KEY = "eft"
"""The config attribute, and the key of `SamplingParams.extra_args`, for this project's values."""

SEPARATOR = "@"
"""Separates a member's name from a weight's name; no checkpoint uses it."""

_PROMPTS_KEY = "eft_prompts"
_SCORING_KEY = "eft_scoring"
_REPORT_KEY = "eft_report"

STATISTICS = ("entropies", "sums_of_squares", "log_rests")
"""The names in `Scoring.shapes` of `ScoredStatistics`, in their order."""


@dataclass(frozen=True)
class MemberWeights:
    """A member's name and where its weights are (a local directory or a hub id with its revision).

    Under tensor parallelism it is replicated on every rank unless `sharded`. If `reference` names another member, the
    weights are an adapter on that one.
    """

    name: str
    model: str
    revision: str | None = None
    sharded: bool = False
    reference: str | None = None

    @property
    def weight_prefix(self) -> str:
        """The prefix that vLLM's loader puts before each of this member's weight names."""
        return f"{self.name}{SEPARATOR}"


@dataclass(frozen=True)
class Manifest:
    """The family as the engine needs it.

    Attributes:
        architectures: of the base's model, since ours replaces them in its config.
        base: the base's name; its checkpoint is the engine's model.
        members: the other members, in the order of the coefficients.
        unshared: half-open ranges of token ids that not all members share.
        draft: the member that drafts in speculative decoding, if one does.
        shapes: the number of decoder layers and the hidden size of each member, in the order of the coefficients.
        activation_bytes: the most bytes of activations that requests under way have together; 0 if they have none.
        defaults: the family's default vector (see `coefficients`), for steps without requests, such as profiling.
        rows: the number of token ids that each member can read, in the order of the coefficients.
    """

    architectures: tuple[str, ...]
    members: tuple[MemberWeights, ...]
    unshared: tuple[tuple[int, int], ...]
    defaults: tuple[float, ...]
    rows: tuple[int, ...]
    base: str = "base"
    draft: str | None = None
    shapes: tuple[tuple[int, int], ...] = ()
    activation_bytes: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, the base first: the order of the coefficients."""
        return (self.base, *(item.name for item in self.members))

    @property
    def width(self) -> int:
        """W: the number of values in a vector."""
        return len(self.defaults)

    @property
    def widths(self) -> tuple[int, ...]:
        """The hidden size of each member."""
        return tuple(width for _, width in self.shapes)

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
            ValueError: the config has none, so the engine was not started through `eft_server`; or one of another
                version, as an older pack has.
        """
        raw = getattr(config, KEY, None)
        if not isinstance(raw, dict):
            raise ValueError(
                f"the model config has no {KEY!r} entry: start it by eft serve, or by vllm serve of what eft pack wrote"
            )
        if missing := [one.name for one in fields(cls) if one.name not in raw]:
            raise ValueError(
                f"the model config's entry {KEY!r} has no {', '.join(missing)}: another version of eft wrote it; "
                "run eft pack or eft vllm-args again"
            )
        return cls(
            architectures=tuple(raw["architectures"]),
            members=tuple(MemberWeights(**member) for member in raw["members"]),
            unshared=tuple((start, stop) for start, stop in raw["unshared"]),
            defaults=tuple(raw["defaults"]),
            rows=tuple(raw["rows"]),
            base=raw["base"],
            draft=raw["draft"],
            shapes=tuple((layers, width) for layers, width in raw["shapes"]),
            activation_bytes=raw["activation_bytes"],
        )


@dataclass(frozen=True)
class Prompts:
    """The per-member prompts of one request.

    Attributes:
        tokens_M: each member's prompt, in the order of the coefficients.
    """

    tokens_M: tuple[np.ndarray, ...]

    @cached_property
    def length(self) -> int:
        """L: the length of the scheduler's prompt."""
        return max(len(tokens) for tokens in self.tokens_M)

    def offset(self, member: int) -> int:
        """A member's distance behind the scheduler's positions, in tokens."""
        return self.length - len(self.tokens_M[member])


@dataclass(frozen=True)
class Explaining:
    """What is reported of a scored row beside its target's scores.

    The sampling settings are those of vLLM's `SamplingParams`, which are neutral by default.

    Attributes:
        likely: N; how many of the request's likeliest tokens.
        leading: L; under how many of the vectors, from the first, those tokens are scored.
        base: the place among the vectors of the one from which the Kullback–Leibler divergence is measured.
        filtered: whether the request's vector has a filter.
    """

    likely: int
    leading: int
    base: int
    filtered: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def neutral(self) -> bool:
        """Whether tokens are sampled from the distribution as it is."""
        return (self.temperature, self.top_p, self.top_k, self.min_p) == (1.0, 1.0, 0, 0.0)


@dataclass(frozen=True)
class Scoring:
    """The tokens of a request to score.

    Attributes:
        first: the scheduler's position whose row predicts the first target: the prompt's last.
        targets: the C tokens to score.
        vectors: the K vectors under which they are scored (`Coefficients.numbers`); the first is the request's.
        explaining: what is reported beside the scores, if anything is.
        statistics: whether each row's `ScoredStatistics` are, under every vector; not beside an explanation.
        activations: the activations that are sent back, if any are.
    """

    first: int
    targets: tuple[int, ...]
    vectors: tuple[tuple[float, ...], ...]
    explaining: Explaining | None = None
    statistics: bool = False
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if self.explaining is not None and self.statistics:
            raise ValueError("a request is explained or measured, not both")

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.first + len(self.targets)

    @property
    def length(self) -> int:
        """The length of the engine's prompt: without the last target, unless members have to read that, too."""
        return self.stop + (self.activations is not None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The numbers that the engine sends back, by name and in order, with their shapes.

        `chosen` and `likeliest` are log-probabilities of the targets and of each row's likeliest token, and
        `STATISTICS` are those of each row. `entropy` and `divergence` are the request's; `likely` holds
        log-probabilities of its likeliest tokens under the leading vectors. Of the target, and then of those, `filter`
        holds what the request's filter adds to the logit, and `sampled` the log-probability after temperature, min_p,
        top_k and top_p.
        """
        columns, vectors, asked = len(self.targets), len(self.vectors), self.explaining
        shapes: dict[str, tuple[int, ...]] = {"chosen": (vectors, columns), "likeliest": (vectors, columns)}
        if self.statistics:
            shapes |= dict.fromkeys(STATISTICS, (vectors, columns))
        if asked is None:
            return shapes
        shapes |= {"entropy": (columns,), "divergence": (columns,)}
        shapes["likely"] = (asked.leading, columns, asked.likely)
        if asked.filtered:
            shapes["filter"] = (columns, 1 + asked.likely)
        if not asked.neutral:
            shapes["sampled"] = (columns, 1 + asked.likely)
        return shapes


def extra_args(
    numbers: Sequence[float],
    prompts: Sequence[Sequence[int]] | None = None,
    scoring: Scoring | None = None,
    *,
    report: bool = False,
) -> dict[str, Any]:
    """A request's `SamplingParams.extra_args`, for `EngineRequest.read`.

    Args:
        numbers: its vector, `Coefficients.numbers`.
        prompts: the per-member prompts, unless all members read the engine's.
        scoring: the tokens to score, if any.
        report: whether to compare the rows of its tokens with the base's.
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
        if scoring.explaining is not None:
            written[_SCORING_KEY]["explaining"] = asdict(scoring.explaining)
        if scoring.statistics:
            written[_SCORING_KEY]["statistics"] = True
        if scoring.activations is not None:
            written[_SCORING_KEY]["activations"] = asdict(scoring.activations)
    if report:
        written[_REPORT_KEY] = True
    return written


@dataclass(frozen=True)
class EngineRequest:
    """A request as the scheduler and the model runners see it.

    Attributes:
        vector: W numbers.
        prompts: the per-member prompts, None if all members read the same.
        scoring: the tokens to score, None if there are none.
        counting: by member, whether it contributes to the sampled tokens.
        reading: by member, whether it contributes to any row of the request, or is compared with them, or its
            activations are asked for.
        needed: by member, whether it has to run for the request: members that read, and one that drafts.
        reporting: whether the rows of its tokens are compared with the base's.
    """

    vector: tuple[float, ...]
    prompts: Prompts | None
    scoring: Scoring | None
    counting: tuple[bool, ...]
    reading: tuple[bool, ...]
    needed: tuple[bool, ...]
    reporting: bool = False

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None, manifest: Manifest) -> "EngineRequest":
        """Read a request; missing or malformed values become NaN (see `vector_of`).

        Args:
            extra_args: the request's.
            manifest: the family's.
        """
        vector = vector_of(extra_args, manifest.width)
        scoring = scoring_of(extra_args, manifest.width)
        vectors = (vector,) if scoring is None else (vector, *scoring.vectors)
        reporting = bool((extra_args or {}).get(_REPORT_KEY))
        reading = _reading(vectors)
        reading = (reading[0] or reporting, *reading[1:])
        if scoring is not None and scoring.activations is not None:
            asked = scoring.activations.members
            reading = tuple(reads or place in asked for place, reads in enumerate(reading))
        drafting = manifest.place(manifest.draft) if manifest.draft is not None else None
        needed = tuple(reads or place == drafting for place, reads in enumerate(reading))
        return cls(vector, _prompts_of(extra_args), scoring, counting(vector), reading, needed, reporting)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """By member, its distance behind the scheduler's positions, in tokens."""
        if self.prompts is None:
            return (0,) * len(self.needed)
        return tuple(self.prompts.offset(member) for member in range(len(self.needed)))

    @cached_property
    def length(self) -> int:
        """The length of the per-member prompts, in the scheduler's positions; 0 without them."""
        return 0 if self.prompts is None else self.prompts.length

    @cached_property
    def members(self) -> frozenset[int]:
        """The places of the needed members."""
        return frozenset(np.flatnonzero(self.needed).tolist())


def _reading(vectors: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    counted = [counting(vector) for vector in vectors]
    reading = [any(of_member) for of_member in zip(*counted, strict=True)]
    # A row to which no member contributes is all zeros, but vLLM still expects its tokens to be read.
    reading[0] |= not any(reading)
    return tuple(reading)


def vector_of(extra_args: Mapping[str, Any] | None, width: int) -> tuple[float, ...]:
    """Read a request's vector from its `SamplingParams.extra_args`, which hold W numbers, or M without a filter.

    The server validates requests first. If a value is still missing or malformed, it must not be replaced by another
    setting, nor stop the engine: it becomes NaN, and the request fails like any other with non-finite logits.

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
    """Read the tokens to score of a request; None if there are none. For the arguments see `vector_of`."""
    given = (extra_args or {}).get(_SCORING_KEY)
    if given is None:
        return None
    vectors = tuple(vector_of({KEY: numbers}, width) for numbers in given["vectors"])
    explaining, activations = given.get("explaining"), given.get("activations")
    return Scoring(
        int(given["first"]),
        tuple(given["targets"]),
        vectors,
        None if explaining is None else Explaining(**explaining),
        bool(given.get("statistics")),
        None if activations is None else Activations.read(activations),
    )


@dataclass(frozen=True)
class ScoredStatistics:
    """What the whole distribution p that predicts each of C tokens is like.

    Attributes:
        entropy: in nats.
        sum_of_squares: Σp².
        log_rest: log(1 − p_max), the log-probability of all tokens but the most likely one; −inf if that is certain.
    """

    entropy: tuple[float, ...]
    sum_of_squares: tuple[float, ...]
    log_rest: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """The scores under one vector, for each of C tokens.

    Attributes:
        logprobs: the token's log-probability; −inf if it is impossible, NaN if the logits were not finite.
        ranks: rank of the token, 1 = most likely.
        likeliest: the log-probability of the most likely token.
        likeliest_ids: that token; 0 unless the request is to be explained.
        statistics: those of the rows, if the request asks for them.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    likeliest: tuple[float, ...]
    likeliest_ids: tuple[int, ...] = field(default=())
    statistics: ScoredStatistics | None = None


@dataclass(frozen=True)
class Explained:
    """What the engine reports of C rows, beside their scores (`Scoring.shapes`).

    Attributes:
        ids_CN: the request's likeliest tokens, the likeliest first.
        logprobs_LCN: their log-probabilities under the leading vectors.
        entropy_C: of the request's distribution, in nats.
        divergence_C: the Kullback–Leibler divergence of the request's distribution from the base's, in nats.
        filter_CN1: what the filter adds to the logit of the target and of the likeliest tokens; None without a filter.
        sampled_CN1: their log-probabilities after temperature, min_p, top_k and top_p; None where these are neutral.
    """

    ids_CN: np.ndarray
    logprobs_LCN: np.ndarray
    entropy_C: np.ndarray
    divergence_C: np.ndarray
    filter_CN1: np.ndarray | None
    sampled_CN1: np.ndarray | None


def scoring_params(scoring: Scoring, prompts: Sequence[Sequence[int]] | None = None) -> SamplingParams:
    """Parameters to score: one greedy token, which is ignored, and the prompt's log-probabilities.

    The engine's prompt is the text without its last token (see `Scoring.length`), since the row after that is not
    needed.

    Args:
        scoring: the tokens to score.
        prompts: the per-member texts, of as many tokens of the completion, unless all members read the same.
    """
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        # For log-probabilities vLLM skips the prefix cache; here the beginning of the prompt may come from it.
        skip_reading_prefix_cache=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args(scoring.vectors[0], prompts, scoring),
    )


def scored(output: RequestOutput, scoring: Scoring) -> tuple[Scored, ...]:
    """Read the scores under each vector from the engine's output, which holds `Scores.tensors`."""
    flat = output.prompt_logprobs
    count, width = len(scoring.vectors), len(scoring.targets)
    assert isinstance(flat, FlatLogprobs) and len(flat.logprobs) == sum(map(prod, scoring.shapes.values()))
    found = []
    for begin in range(0, count * width, width):
        blocks = [slice(at, at + width) for at in range(begin, len(flat.logprobs), count * width)]
        own, tops, *further = blocks[: 2 + len(STATISTICS) * scoring.statistics]
        ranks = tuple(rank or 0 for rank in flat.ranks[own])
        values, likeliest, ids = flat.logprobs[own], flat.logprobs[tops], flat.token_ids[tops]
        statistics = [tuple(flat.logprobs[block]) for block in further]
        found.append(
            Scored(
                tuple(values),
                ranks,
                tuple(likeliest),
                tuple(ids),
                ScoredStatistics(*statistics) if scoring.statistics else None,
            )
        )
    return tuple(found)


def explained(output: RequestOutput, scoring: Scoring) -> Explained:
    """Read what is reported beside the scores from the same output."""
    flat, values, begin = output.prompt_logprobs, dict[str, np.ndarray](), 0
    assert isinstance(flat, FlatLogprobs) and scoring.explaining is not None
    for name, shape in scoring.shapes.items():
        end = begin + prod(shape)
        values[name] = np.array(flat.logprobs[begin:end]).reshape(shape)
        if name == "likely":
            ids = flat.token_ids[begin : begin + prod(shape[1:])]
            values["ids"] = np.array(ids, dtype=np.int64).reshape(shape[1:])
        begin = end
    return Explained(
        values["ids"],
        values["likely"],
        values["entropy"],
        values["divergence"],
        values.get("filter"),
        values.get("sampled"),
    )


def activations_of(
    output: RequestOutput, scoring: Scoring, widths: Sequence[int]
) -> dict[int, dict[int, np.ndarray]]:
    """Read a request's activations from the same output, float32 by member and layer: see `Activations.split`.

    Raises:
        ActivationError: a member's model does not have what was asked for.
    """
    assert scoring.activations is not None
    return scoring.activations.split(output.outputs[0].routed_experts, len(scoring.targets), widths)
