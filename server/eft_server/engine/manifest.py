"""What travels from the launcher to the model, in every process: the family, inside the base's config."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

KEY = "eft"
"""The config attribute, and the key of `SamplingParams.extra_args`, that hold this project's values."""

PROMPTS_KEY = "eft_prompts"
"""The key of `SamplingParams.extra_args` that holds a prompt for each member: token ids."""

SCORING_KEY = "eft_scoring"
"""The key of `SamplingParams.extra_args` that says which tokens are to be scored, and how (`scoring`)."""

SEPARATOR = "@"
"""Ends a member's name where it prefixes a weight's name; no checkpoint uses it."""


@dataclass(frozen=True)
class Checkpoint:
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
        defaults: the family's own mixture (see `coefficients`), for steps without requests, such as profiling.
        rows: how many token ids each member can read, in the order of the coefficients.
    """

    architectures: tuple[str, ...]
    members: tuple[Checkpoint, ...]
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
        """W: how many numbers a mixture is."""
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
                f"the model config has no {KEY!r} entry: start the engine through eft_server.engine.launch"
            )
        return cls(
            architectures=tuple(raw["architectures"]),
            members=tuple(Checkpoint(**member) for member in raw["members"]),
            unshared=tuple((start, stop) for start, stop in raw["unshared"]),
            defaults=tuple(raw["defaults"]),
            rows=tuple(raw["rows"]),
            base=raw["base"],
            draft=raw["draft"],
        )
