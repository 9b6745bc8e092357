"""Which token ids mean the same to every member: they are compared by content, never by size."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eft_server.errors import FamilyError, shown

__all__ = ["Tokens", "Vocabulary", "compare"]

_EXAMPLES = 5


@dataclass(frozen=True)
class Tokens:
    """One member's ids.

    Attributes:
        contents: The token of each id; padding ids have none.
        added: The ids outside the ordinary vocabulary: special tokens and others added later.
    """

    contents: Mapping[int, str]
    added: frozenset[int]

    def describe(self, token_id: int) -> str:
        """The token of an id, for messages."""
        return shown(self.contents[token_id]) if token_id in self.contents else "nothing"


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a family can generate.

    Attributes:
        size: The width of a row of logits: the base's vocabulary, padding included.
        shared: Half-open ranges of the ids that mean the same to every member, in ascending order.
    """

    size: int
    shared: tuple[tuple[int, int], ...]

    def __contains__(self, token_id: int) -> bool:
        return any(start <= token_id < stop for start, stop in self.shared)

    @property
    def shared_count(self) -> int:
        """The number of shared ids."""
        return sum(stop - start for start, stop in self.shared)


def compare(base: Tokens, others: Mapping[str, Tokens], size: int) -> tuple[Vocabulary, list[str]]:
    """The ids that all members share, and warnings about the others.

    Args:
        base: The base's ids; prompts are made of these.
        others: The other members' ids, by name.
        size: The base's vocabulary, padding included.

    Raises:
        FamilyError: An ordinary id of the base has another meaning, or none, for a member.
    """
    shared = set(base.contents)
    warnings = []
    for name, tokens in others.items():
        differing = [i for i in base.contents if tokens.contents.get(i) != base.contents[i]]
        ordinary = [i for i in differing if i not in base.added and i not in tokens.added]
        if ordinary:
            raise FamilyError(
                f"{name!r} does not share the base's vocabulary: {_examples(ordinary, base, name, tokens)}; "
                "every member needs the same tokenizer, up to special tokens"
            )
        if differing:
            warnings.append(
                f"special tokens of the base and of {name!r} differ and cannot be generated: "
                f"{_examples(differing, base, name, tokens)}"
            )
        extra = [i for i in tokens.contents if i not in base.contents]
        if extra:
            warnings.append(
                f"tokens of {name!r} that the base lacks cannot be generated: "
                f"{_examples(extra, base, name, tokens)}"
            )
        shared.difference_update(differing)
    return Vocabulary(size, tuple(_ranges(shared))), warnings


def _examples(ids: list[int], base: Tokens, name: str, tokens: Tokens) -> str:
    first = sorted(ids)[:_EXAMPLES]
    listed = "; ".join(f"{i} is {base.describe(i)} in base, {tokens.describe(i)} in {name}" for i in first)
    noun = "id" if len(ids) == 1 else "ids"
    more = f"; and {len(ids) - len(first)} more" if len(ids) > len(first) else ""
    return f"{len(ids)} {noun} ({listed}{more})"


def _ranges(ids: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Ascending ids as half-open ranges."""
    start = stop = None
    for token_id in sorted(ids):
        if token_id != stop:
            if start is not None and stop is not None:
                yield start, stop
            start = token_id
        stop = token_id + 1
    if start is not None and stop is not None:
        yield start, stop
