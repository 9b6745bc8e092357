"""The sections of a family file, and the rules that hold between them."""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from eft_server.errors import shown
from eft_server.family.document import KeyedError
from eft_server.family.family import BASE, Family, Member, Role, Source
from eft_server.family.vllm_options import problem_with

__all__ = [
    "BASE",
    "SAME_AS",
    "ExpertSpec",
    "Filter",
    "Limits",
    "MemberSpec",
    "Range",
    "ServerConfig",
    "ServerOptions",
    "Setting",
    "Speculative",
]

SAME_AS = "same as "
"""Begins a template setting that names another member."""

MAX_EXPERTS = 32
MAX_ALIASES = 128
MAX_BOUND = 1000.0

_RESERVED = frozenset({BASE, "scale", "amplify", "filter", "top_p", "coefficients", "report"})

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Number = Annotated[float, Field(ge=-MAX_BOUND, le=MAX_BOUND, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=2000)]
ParserName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Checkpoint = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024)]
Revision = Annotated[str, Field(min_length=1, max_length=256)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Member(_Section):
    """The keys that any member may have in the file.

    The template is ``own``, ``plain``, ``same as <member>`` or a Jinja file; if it is left out, `templates` decides.
    Under tensor parallelism the base is sharded over the GPUs; other members are replicated unless the file says so.
    """

    model: Checkpoint | None = None
    revision: Revision | None = None
    template: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    description: Text = ""
    tensor_parallel: Literal["replicated", "sharded"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class MemberSpec(_Member):
    """A checkpoint: a directory or a hub id, with its revision.

    A directory is relative to the family file's folder; with ``./`` in front it cannot be taken for a hub id.
    """

    model: Checkpoint


class ExpertSpec(_Member):
    """A fine-tuned checkpoint, or a LoRA adapter on the reference; the reference's logits are subtracted.

    The reference may be ``base``; by default it is the family's only reference.
    """

    adapter: Checkpoint | None = None
    reference: Name | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.model is None) == (self.adapter is None):
            given = "both model and adapter" if self.model else "neither model nor adapter"
            raise ValueError(
                f"{given}; an expert is one of the two: a checkpoint, or an adapter on its reference"
            )
        return self


M = TypeVar("M", bound=_Member)


class Filter(_Section):
    """Where the small models are trusted. A nucleus is the most likely tokens that hold top_p of the probability."""

    kind: Literal["expert", "base"] = Field(
        description="expert: the up-scaling delta counts only inside the emulated small model's nucleus. "
        "base: only tokens of the base's nucleus are allowed."
    )
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        description="The nucleus's probability; 1 filters nothing."
    )


class Setting(_Section):
    """How much of each expert to apply; an expert that is not named counts as 0."""

    weights: Annotated[dict[Name, Number], Field(max_length=MAX_EXPERTS)] = Field(default_factory=dict)
    scale: Number = 1.0
    amplify: Number = 1.0
    filter: Filter | None = None
    description: Text = ""


NEUTRAL = "neutral"


class FamilyDefaults(Setting):
    """The setting behind the family's name, and the default sampling of requests.

    Attributes:
        sampling: Neutral (temperature 1, everything else off), or the member whose generation_config.json is used.
    """

    sampling: Name = NEUTRAL


class Range(_Section):
    """A closed interval."""

    min: Number = 0.0
    max: Number = 2.0

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Limits(_Section):
    """Bounds on requests; weights are negative only where the operator opens a range below 0.

    Coefficients in requests are refused unless the operator gives their range.
    """

    weight: Range = Range()
    weights: Annotated[dict[Name, Range], Field(max_length=MAX_EXPERTS)] = Field(default_factory=dict)
    scale: Range = Range()
    amplify: Range = Range()
    coefficients: Range | None = None
    total: Annotated[float, Field(ge=0, le=MAX_BOUND, allow_inf_nan=False)] = 2.0

    def of(self, expert: str) -> Range:
        """The range of one expert's weight."""
        return self.weights.get(expert, self.weight)

    def violations(
        self, weights: Mapping[str, float], scale: float, amplify: float = 1.0
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield (key inside the setting, message) for each bound that a setting breaks."""
        for name, weight in weights.items():
            allowed = self.of(name)
            if not allowed.min <= weight <= allowed.max:
                yield ("weights", name), f"{shown(weight)} is out of bounds; allowed: {_span(allowed)}"
        for name, value, allowed in (("scale", scale, self.scale), ("amplify", amplify, self.amplify)):
            if not allowed.min <= value <= allowed.max:
                yield (name,), f"{shown(value)} is out of bounds; allowed: {_span(allowed)}"
        total = abs(scale) * math.fsum(map(abs, weights.values()))
        # A tiny tolerance: 0.1 + 0.2 + 0.7 must count as 1.
        if total > self.total * (1 + 1e-9):
            yield (
                ("weights",),
                f"scale times the sum of |weights| is {total!r}; allowed: up to {self.total:g}",
            )


class Speculative(_Section):
    """Speculative decoding: a draft proposes a few tokens at a time, and the family verifies them.

    The draft is a member's name (nothing more is loaded), another checkpoint, or with method ``ngram`` the text
    itself: the tokens that followed an earlier occurrence of its last lookup_min to lookup_max tokens.
    """

    method: Literal["draft", "ngram"] = "draft"
    draft: Checkpoint | None = None
    tokens: Annotated[int, Field(ge=1, le=16)] = 4
    lookup_min: Annotated[int, Field(ge=1, le=16)] | None = None
    lookup_max: Annotated[int, Field(ge=1, le=16)] | None = None

    @property
    def lookup(self) -> tuple[int, int]:
        """The smallest and largest number of last tokens to look up: by default 2 and 4."""
        shortest = self.lookup_min or min(2, self.lookup_max or 2)
        return shortest, self.lookup_max or max(4, shortest)

    @model_validator(mode="after")
    def _has_what_its_method_needs(self) -> Self:
        if self.method == "draft" and self.draft is None:
            raise ValueError("needs draft, a member's name or a checkpoint (or use method: ngram)")
        if self.method == "ngram" and self.draft is not None:
            raise ValueError("method ngram needs no draft; remove one of them")
        if self.method == "draft" and (self.lookup_min or self.lookup_max):
            raise ValueError("lookup_min and lookup_max belong to method ngram")
        shortest, longest = self.lookup
        if shortest > longest:
            raise ValueError(f"lookup_min {shortest} is above lookup_max {longest}")
        return self


class ServerOptions(_Section):
    """Where the server listens, and limits on its clients."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_key_file: Annotated[Path, Field(strict=False)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 2 * 1024 * 1024
    max_n: Annotated[int, Field(ge=1, le=1024)] = 16
    max_prompts: Annotated[int, Field(ge=1, le=4096)] = 16
    max_stop: Annotated[int, Field(ge=1, le=1024)] = 16
    max_logprobs: Annotated[int, Field(ge=0, le=1000)] = 20
    max_score_items: Annotated[int, Field(ge=1, le=65536)] = 256
    max_scores: Annotated[int, Field(ge=1, le=1 << 24)] = 1 << 18
    activations: bool = False
    max_activation_bytes: Annotated[int, Field(ge=1, le=1 << 32)] = 1 << 24
    max_concurrent_requests: Annotated[int, Field(ge=1, le=65536)] = 256
    max_waiting_requests: Annotated[int, Field(ge=0, le=65536)] = 1024
    waiting_timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    max_sequences: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    max_tokens_under_way: Annotated[int, Field(ge=1, le=1 << 40)] = 1 << 22
    max_bytes_under_way: Annotated[int, Field(ge=1024, le=1 << 40)] = 1 << 28
    share_prefix_cache: bool = False
    key_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.5
    body_timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30.0
    request_timeout_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 600.0
    drain_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 5.0
    playground: bool = True
    tool_parser: ParserName | None = None
    reasoning_parser: ParserName | None = None

    @model_validator(mode="after")
    def _check_bodies(self) -> Self:
        most = int(self.max_bytes_under_way * self.key_share)
        if self.max_body_bytes > most:
            message = (
                f"max_body_bytes {self.max_body_bytes} is more than one API key may have under way: "
                f"max_bytes_under_way × key_share is {most}"
            )
            raise ValueError(message)
        return self

    def share(self, keys: int) -> float:
        """The share of a bounded resource that one of the API keys may have: all of it if it is the only key."""
        return self.key_share if keys > 1 else 1.0


class ServerConfig(_Section):
    """A family and how to serve it.

    After validation every expert has its reference, every member states whether it is sharded, and defaults and
    aliases have a weight for every expert.
    """

    name: Name
    description: Text = ""
    base: MemberSpec
    references: Annotated[dict[Name, MemberSpec], Field(max_length=MAX_EXPERTS)] = Field(default_factory=dict)
    experts: Annotated[dict[Name, ExpertSpec], Field(min_length=1, max_length=MAX_EXPERTS)]
    defaults: FamilyDefaults = FamilyDefaults()
    aliases: Annotated[dict[Name, Setting], Field(max_length=MAX_ALIASES)] = Field(default_factory=dict)
    limits: Limits = Limits()
    speculative: Speculative | None = None
    vllm: Annotated[dict[str, Any], Field(max_length=256)] = Field(default_factory=dict)
    server: ServerOptions = ServerOptions()

    @cached_property
    def family(self) -> Family:
        """The members, resolved."""
        specs: list[tuple[str, Role, MemberSpec | ExpertSpec]] = [(BASE, Role.BASE, self.base)]
        specs += [(name, Role.REFERENCE, spec) for name, spec in self.references.items()]
        specs += [(name, Role.EXPERT, spec) for name, spec in self.experts.items()]
        members: dict[str, Member] = {}
        for name, role, spec in specs:
            members[name] = _resolved(name, role, spec, members)
        return Family(tuple(members.values()))

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other sections, whose members are resolved again."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("family", None)
        return copied

    def without_up_scaling(
        self, weights: Mapping[str, float], amplify: float, keep: Filter | None
    ) -> tuple[str, str] | None:
        """Find a field that acts on the up-scaling delta where there is none: its key, and the problem in words."""
        by_expert = keep is not None and keep.kind == "expert" and keep.top_p < 1
        if amplify == 1 and not by_expert:
            return None
        key = "amplify" if amplify != 1 else "filter"
        shares = self.family.reference_shares(weights)
        if not shares:
            return key, (
                "needs a weight other than 0: the family has several references, and the weights decide which of "
                "them the base is compared with"
            )
        if set(shares) == {BASE}:
            return key, (
                "has no effect: the experts with a weight have the base as their reference, so there is no "
                "up-scaling; leave it out"
            )
        return None

    @property
    def _names(self) -> tuple[str, ...]:
        return (BASE, *self.references, *self.experts)

    @model_validator(mode="after")
    def _is_a_family(self) -> Self:
        self._check_names()
        self._complete("experts", {n: self._with_reference(n, e) for n, e in self.experts.items()})
        self._check_references_used()
        self._check_templates()
        self._place_members()
        self._check_limits_named()
        self._check_sampling()
        self._complete("defaults", self._completed(("defaults",), self.defaults, self._even_setting()))
        aliases = {
            n: self._completed(("aliases", n), alias, self.defaults) for n, alias in self.aliases.items()
        }
        self._complete("aliases", aliases)
        self._check_up_scaling()
        self._check_vllm_options()
        return self

    def _complete(self, field: str, value: Any) -> None:
        """Replace a field of the frozen model during validation, before it is visible to others."""
        self.__dict__[field] = value

    def _check_names(self) -> None:
        if self.name in _RESERVED:
            raise KeyedError(("name",), f"{self.name!r} is reserved; choose another name")
        taken = {self.name: "name"}
        for section in ("references", "experts", "aliases"):
            for name in getattr(self, section):
                if name in _RESERVED:
                    raise KeyedError((section, name), f"{name!r} is reserved; choose another name")
                if name in taken:
                    raise KeyedError((section, name), f"{name!r} is already taken by {taken[name]}")
                taken[name] = section

    def _with_reference(self, name: str, expert: ExpertSpec) -> ExpertSpec:
        known = (*self.references, BASE)
        reference = expert.reference
        if reference is None:
            if len(self.references) != 1:
                raise KeyedError(("experts", name), f"needs a reference; known: {', '.join(known)}")
            reference = next(iter(self.references))
        elif reference not in known:
            key = ("experts", name, "reference")
            raise KeyedError(key, f"{reference!r} is not a reference; known: {', '.join(known)}")
        return expert.model_copy(update={"reference": reference})

    def _check_references_used(self) -> None:
        used = {expert.reference for expert in self.experts.values()}
        for name in self.references:
            if name not in used:
                raise KeyedError(("references", name), "no expert has this reference; remove it or use it")

    def _check_templates(self) -> None:
        sections: list[tuple[tuple[str, ...], _Member]] = [((BASE,), self.base)]
        sections += [(("references", name), spec) for name, spec in self.references.items()]
        sections += [(("experts", name), spec) for name, spec in self.experts.items()]
        for key, spec in sections:
            other = (spec.template or "").removeprefix(SAME_AS)
            if other != (spec.template or "") and other not in self._names:
                message = f"{other!r} is not a member; known: {', '.join(self._names)}"
                raise KeyedError((*key, "template"), message)

    def _place_members(self) -> None:
        if self.base.tensor_parallel == "replicated":
            message = "must be 'sharded' or left out: the base is always sharded over the GPUs"
            raise KeyedError((BASE, "tensor_parallel"), message)
        self._complete("base", self.base.model_copy(update={"tensor_parallel": "sharded"}))
        self._complete("references", {name: _placed(member) for name, member in self.references.items()})
        self._complete("experts", {name: self._place_expert(name, e) for name, e in self.experts.items()})

    def _place_expert(self, name: str, expert: ExpertSpec) -> ExpertSpec:
        if expert.adapter is None:
            return _placed(expert)
        reference = self.base if expert.reference == BASE else self.references[str(expert.reference)]
        place = reference.tensor_parallel
        if expert.tensor_parallel not in (None, place):
            message = f"an adapter is {place} as its reference is: leave it out, or set it on the reference"
            raise KeyedError(("experts", name, "tensor_parallel"), message)
        return expert.model_copy(update={"tensor_parallel": place})

    def _check_sampling(self) -> None:
        known = (NEUTRAL, *self._names)
        if self.defaults.sampling not in known:
            message = f"{self.defaults.sampling!r} is not one of {', '.join(known)}"
            raise KeyedError(("defaults", "sampling"), message)
        if "sampling" in self.defaults.model_fields_set:
            for option in ("generation_config", "override_generation_config"):
                if option in self.vllm:
                    raise KeyedError(("vllm", option), "repeats defaults.sampling: remove one of them")

    def _check_up_scaling(self) -> None:
        aliases = [(("aliases", name), alias) for name, alias in self.aliases.items()]
        settings: list[tuple[tuple[str, ...], Setting]] = [(("defaults",), self.defaults), *aliases]
        for key, setting in settings:
            if problem := self.without_up_scaling(setting.weights, setting.amplify, setting.filter):
                raise KeyedError((*key, problem[0]), problem[1])

    def _check_limits_named(self) -> None:
        for name in self.limits.weights:
            if name not in self.experts:
                raise KeyedError(("limits", "weights", name), self._not_an_expert(name))

    def _not_an_expert(self, name: str) -> str:
        return f"{name!r} is not an expert; known: {', '.join(self.experts)}"

    def _even_setting(self) -> Setting:
        return Setting(weights={name: 1 / len(self.experts) for name in self.experts})

    def _completed(self, key: tuple[str, ...], setting: Setting, fallback: Setting) -> Setting:
        """Give each expert a weight and check the bounds; missing keys are filled from the fallback."""
        for name in setting.weights:
            if name not in self.experts:
                raise KeyedError((*key, "weights", name), self._not_an_expert(name))
        given = setting.weights if "weights" in setting.model_fields_set else fallback.weights
        weights = {name: given.get(name, 0.0) for name in self.experts}
        others = ("scale", "amplify", "filter")
        update = {n: getattr(setting if n in setting.model_fields_set else fallback, n) for n in others}
        for place, message in self.limits.violations(weights, update["scale"], update["amplify"]):
            raise KeyedError((*key, *place), f"{message} (see limits)")
        return setting.model_copy(update={"weights": weights, **update})

    def _check_vllm_options(self) -> None:
        for option, value in self.vllm.items():
            if problem := problem_with(option, value):
                raise KeyedError(("vllm", option), problem)


def _resolved(name: str, role: Role, spec: MemberSpec | ExpertSpec, before: Mapping[str, Member]) -> Member:
    """Resolve a member; an adapter's reference has to be among the members before it."""
    reference = spec.reference if isinstance(spec, ExpertSpec) else None
    adapter = spec.adapter if isinstance(spec, ExpertSpec) else None
    return Member(
        name,
        place=len(before),
        role=role,
        checkpoint=before[str(reference)].checkpoint if adapter else Source(str(spec.model), spec.revision),
        adapter=Source(adapter, spec.revision) if adapter else None,
        reference=reference,
        sharded=spec.tensor_parallel == "sharded",
        template=spec.template,
        description=spec.description,
    )


def _placed(member: M) -> M:
    return member.model_copy(update={"tensor_parallel": member.tensor_parallel or "replicated"})


def _span(allowed: Range) -> str:
    return f"{allowed.min:g} to {allowed.max:g}"
