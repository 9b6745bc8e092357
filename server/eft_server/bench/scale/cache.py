"""A replica's prefix cache: chains of blocks, of which the least recently used lose their ends first."""

from collections import Counter, OrderedDict
from collections.abc import Sequence

__all__ = ["PrefixCache"]

BLOCK = 16

Key = tuple[str, int]


class PrefixCache:
    """Tokens of prompts and answers that are held, by chains of parts: a system prompt, then a conversation.

    A part is a prefix of what it stands for: eviction takes blocks off its end, as vLLM does, which frees the blocks of
    a request from the last to the first.

    Args:
        tokens: How many tokens there is room for.
    """

    def __init__(self, tokens: int) -> None:
        self._room = tokens // BLOCK * BLOCK
        self._held: OrderedDict[Key, int] = OrderedDict()
        self._used = 0
        self._pins: Counter[Key] = Counter()

    def cached(self, chain: Sequence[tuple[Key, int]]) -> int:
        """How many tokens of a prompt are held; what follows a gap does not count."""
        hit = 0
        for key, length in chain:
            held = min(self._held.get(key, 0), length)
            hit += held
            if held < length:
                break
        return hit // BLOCK * BLOCK

    def take(self, chain: Sequence[tuple[Key, int]]) -> bool:
        """Hold a chain for a running request, evicting others; return whether there was room."""
        keys = [key for key, _ in chain]
        for key in keys:
            self._pins[key] += 1
            if key in self._held:
                self._held.move_to_end(key)
        more = sum(max(0, _whole(length) - _whole(self._held.get(key, 0))) for key, length in chain)
        if not self._evict(self._used + more - self._room):
            self.release(keys)
            return False
        for key, length in chain:
            before = self._held.get(key, 0)
            self._held[key] = max(before, length)
            self._used += _whole(self._held[key]) - _whole(before)
        return True

    def release(self, keys: Sequence[Key]) -> None:
        """Let a request's parts be evicted again, unless others hold them."""
        for key in keys:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def _evict(self, excess: int) -> bool:
        if excess <= 0:
            return True
        loose = []
        for key, held in self._held.items():
            if key not in self._pins:
                loose.append((key, min(_whole(held), _whole(excess))))
                excess -= _whole(held)
                if excess <= 0:
                    break
        if excess > 0:
            return False
        for key, taken in loose:
            self._used -= taken
            self._held[key] = min(self._held[key], _whole(self._held[key]) - taken)
            if not self._held[key]:
                del self._held[key]
        return True


def _whole(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
