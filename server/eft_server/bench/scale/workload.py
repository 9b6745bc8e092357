"""Conversations: shared system prompts, some far more popular than others, and turns that repeat what went before."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Conversation", "Traffic", "Turn", "conversations"]


@dataclass(frozen=True)
class Turn:
    """One request of a conversation.

    Attributes:
        tokens: What the user adds.
        answer: Tokens of the answer.
        pause_s: From the last answer's end to this request.
    """

    tokens: int
    answer: int
    pause_s: float


@dataclass(frozen=True)
class Conversation:
    """A system prompt, and turns that each repeat all that went before."""

    number: int
    begins_s: float
    system: int
    system_tokens: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Traffic:
    """How conversations come about. Lengths are log-normal, given by their means.

    Attributes:
        rate: Conversations that begin each second, on all replicas together.
        seconds: For how long.
        systems: Different system prompts; the k-th is asked for in proportion to 1 / k^skew.
        skew: See there.
        system_tokens: Length of a system prompt.
        turns: Turns of a conversation, geometric.
        user_tokens: Length of a user's message.
        answer_tokens: Length of an answer.
        pause_s: Time that a user takes, exponential.
    """

    rate: float
    seconds: float = 120.0
    systems: int = 1000
    skew: float = 1.0
    system_tokens: float = 1500.0
    turns: float = 4.0
    user_tokens: float = 120.0
    answer_tokens: float = 160.0
    pause_s: float = 15.0


_LONGEST = 8000
_SPREAD = 0.8
"""Standard deviation of the logarithm of a length."""


def conversations(traffic: Traffic, seed: int) -> Iterator[Conversation]:
    """Draw the conversations that begin in the given time, in order."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, traffic.systems + 1) ** traffic.skew
    popular = np.cumsum(shares / shares.sum())
    system_tokens = _lengths(rng, traffic.system_tokens, traffic.systems)
    begins_s, number = 0.0, 0
    while (begins_s := begins_s + rng.exponential(1 / traffic.rate)) < traffic.seconds:
        count = int(rng.geometric(1 / traffic.turns))
        user = _lengths(rng, traffic.user_tokens, count)
        answer = _lengths(rng, traffic.answer_tokens, count)
        pauses_s = rng.exponential(traffic.pause_s, count)
        system = min(int(np.searchsorted(popular, rng.random())), traffic.systems - 1)
        turns = tuple(
            Turn(int(tokens), int(more), float(pause_s))
            for tokens, more, pause_s in zip(user, answer, pauses_s, strict=True)
        )
        yield Conversation(number, begins_s, system, int(system_tokens[system]), turns)
        number += 1


def _lengths(rng: np.random.Generator, mean: float, count: int) -> np.ndarray:
    drawn = rng.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, count)
    return np.clip(drawn.astype(int), 1, _LONGEST)
