"""The members of a family, resolved once from what the family file says: what each is, and where it comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from typing_extensions import override

__all__ = ["BASE", "Family", "Member", "Role", "Source"]

BASE = "base"
"""The base's name among the members."""


class Role(StrEnum):
    """What a member is in the equation."""

    BASE = "base"
    REFERENCE = "reference"
    EXPERT = "expert"


@dataclass(frozen=True)
class Source:
    """A directory, as an absolute path, or a hub id with its revision.

    Attributes:
        model: the directory or the id.
        revision: of the hub, None for its main branch.
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
        role: what it is.
        checkpoint: what it runs on: its own checkpoint, or its reference's where it is an adapter.
        adapter: its low-rank terms on that, where it is an adapter.
        reference: the name of what an expert's logits are compared with: a reference, or `base`.
        sharded: whether tensor parallelism spreads it over the GPUs; otherwise each holds it whole.
        template: what the file says of its chat template: `own`, `plain`, `same as <member>` or a Jinja file.
        description: for people.
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
        """Where what is its own comes from: its adapter, or its checkpoint."""
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
            KeyError: None has this name.
        """
        return self._by_name[name]

    @property
    def base(self) -> Member:
        """The first."""
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
        """Those that requests weigh."""
        return tuple(member for member in self.members if member.role is Role.EXPERT)

    @property
    def adapters(self) -> tuple[Member, ...]:
        """The experts that are adapters."""
        return tuple(member for member in self.members if member.adapter is not None)

    def reference_of(self, expert: str) -> str:
        """What an expert's logits are compared with.

        Raises:
            KeyError: No member has this name.
            ValueError: It is no expert.
        """
        reference = self[expert].reference
        if reference is None:
            raise ValueError(f"{expert!r} is no expert")
        return reference

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}
