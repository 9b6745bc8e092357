"""The members of a family, resolved once from the family file: their roles and sources."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from typing_extensions import override

__all__ = ["BASE", "Family", "Member", "Role", "Source"]

BASE = "base"
"""The base's name among the members."""


class Role(StrEnum):
    """A member's role in the equation."""

    BASE = "base"
    REFERENCE = "reference"
    EXPERT = "expert"


@dataclass(frozen=True)
class Source:
    """A directory, as an absolute path, or a hub id with its revision.

    Attributes:
        model: the directory or the id.
        revision: on the hub, None for the main branch.
    """

    model: str
    revision: str | None = None

    @override
    def __str__(self) -> str:
        return f"{self.model} at {self.revision}" if self.revision else self.model


@dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        name: its name.
        place: its place in a vector of coefficients.
        role: its role in the equation.
        checkpoint: its checkpoint, or its reference's if it is an adapter.
        adapter: the low-rank terms on that checkpoint, if it is an adapter.
        reference: for an expert, the name of the member whose logits are subtracted: a reference, or `base`.
        sharded: whether tensor parallelism spreads it over the GPUs; otherwise each holds all of it.
        template: its chat template in the family file: `own`, `plain`, `same as <member>` or a Jinja file.
        description: a description for people.
    """

    name: str
    place: int
    role: Role
    checkpoint: Source
    adapter: Source | None = None
    reference: str | None = None
    sharded: bool = False
    template: str | None = None
    description: str = ""

    @property
    def source(self) -> Source:
        """The source of its adapter if it is one, else of its checkpoint."""
        return self.adapter or self.checkpoint


@dataclass(frozen=True)
class Family:
    """All members, in the order of a vector of coefficients: the base, references, experts."""

    members: tuple[Member, ...]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Member:
        """A member by its name.

        Raises:
            KeyError: No member has this name.
        """
        return self._by_name[name]

    @property
    def base(self) -> Member:
        """The base, which comes first."""
        return self.members[0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(self._by_name)

    @property
    def places(self) -> dict[str, int]:
        """The members' places in a vector of coefficients, by name."""
        return {member.name: member.place for member in self.members}

    @property
    def experts(self) -> tuple[Member, ...]:
        """The members to which requests give weights."""
        return tuple(member for member in self.members if member.role is Role.EXPERT)

    @property
    def adapters(self) -> tuple[Member, ...]:
        """The experts that are adapters."""
        return tuple(member for member in self.members if member.adapter is not None)

    def reference_of(self, expert: str) -> str:
        """The name of the member whose logits are subtracted from an expert's.

        Raises:
            KeyError: No member has this name.
            ValueError: It is not an expert.
        """
        reference = self[expert].reference
        if reference is None:
            raise ValueError(f"{expert!r} is not an expert")
        return reference

    def reference_shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        """How the references share in the emulated small model's base: by the weights of their experts.

        Args:
            weights: one for each expert.

        Returns:
            A share for every reference of an expert with a weight, which sum to 1, or 1 for the family's only one; an
            empty mapping if there are several references without any weight: then there is no up-scaling delta.
        """
        taken: dict[str, float] = {}
        for name, weight in weights.items():
            reference = self.reference_of(name)
            taken[reference] = taken.get(reference, 0.0) + abs(weight)
        if len(taken) == 1:
            return dict.fromkeys(taken, 1.0)
        total = math.fsum(taken.values())
        return {name: share / total for name, share in taken.items() if share} if total else {}

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}
