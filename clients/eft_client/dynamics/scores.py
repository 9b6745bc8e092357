"""What every step of an axis gives every text: asked of the server once, kept in a journal, and read from it.

An entry holds sums over the text's tokens, before any mean over prompts: everything that a report shows follows from
these.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from eft_client.dynamics.axis import Axis, Step
from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.texts.text import Text
from eft_client.errors import EftError, NotFound
from eft_client.pairs.errors import NO_END
from eft_client.pairs.pair import Pair
from eft_client.quality.journal import Journal, content_key
from eft_client.results import MemberScores, ScoredItem, ScoreResult
from eft_client.sync import EftClient

__all__ = ["Scorer", "Sums", "key_of"]

MAX_ITEMS = 64
MAX_SCORES = 1 << 18
SCORES_A_TOKEN = 4
"""The score itself, and three statistics."""

_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over a text's tokens, of the rows that predict them; p is a row's distribution, y its token.

    Attributes:
        tokens: how many there are.
        total: of log p(y).
        argmax: of the likeliest token's log-probability.
        entropy: of the entropy, in nats.
        log_rest: of log(1 − p_max).
        norm: of ‖p‖.
        gap: of ‖p − e(y)‖, where e is the one-hot vector.
        label: of p(y).
    """

    tokens: int
    total: float
    argmax: float
    entropy: float
    log_rest: float
    norm: float
    gap: float
    label: float

    @classmethod
    def of(cls, scores: MemberScores) -> Self:
        """Sum what a server gave.

        Raises:
            DynamicsError: It gave no statistics.
        """
        statistics = scores.statistics
        if statistics is None:
            raise DynamicsError("the answer has no statistics; expected a server that knows `statistics`")
        squares = statistics.sum_of_squares
        labels = [math.exp(logprob) for logprob in scores.logprobs]
        # ‖p − e‖² = Σp² − 2 p(y) + 1, which rounding may take below 0.
        gaps = [
            math.sqrt(max(0.0, square - 2 * label + 1)) for square, label in zip(squares, labels, strict=True)
        ]
        return cls(
            tokens=len(labels),
            total=scores.total,
            argmax=math.fsum(scores.top_logprobs),
            entropy=math.fsum(statistics.entropy),
            log_rest=math.fsum(statistics.log_rest),
            norm=math.fsum(map(math.sqrt, squares)),
            gap=math.fsum(gaps),
            label=math.fsum(labels),
        )

    def as_json(self) -> dict[str, Any]:
        """For the journal; what is not finite is null."""
        return {
            name: (round(value, _DIGITS) if math.isfinite(value) else None)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """What `as_json` gave."""
        sums: dict[str, Any] = {name: -math.inf if value is None else value for name, value in entry.items()}
        return cls(**sums)


def key_of(axis: Axis, step: Step | None, pair: Pair, text: Text) -> str:
    """A text's name in the journal: its content, with the steps that one request scores together."""
    asked: dict[str, Any] = {"steps": axis.names} if step is None else {"eft": dict(step.eft)}
    return content_key({"scores": {"model": axis.model} | asked} | text.content(pair))


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores texts along an axis.

    Attributes:
        client: of the server.
        journal: what was scored.
        axis: of steps.
    """

    client: EftClient
    journal: Journal
    axis: Axis

    @property
    def requests(self) -> tuple[Step | None, ...]:
        """What a text is scored under, one request each; None stands for all checkpoints at once."""
        return (None,) if self.axis.is_training else self.axis.steps

    def score(self, side: str, pair: Pair, texts: Sequence[Text], step: Step | None) -> list[int]:
        """Score a pair's texts where the journal lacks them.

        Returns:
            The token ids of the first text if it was scored now, else of the journal's entry.
        """
        keys = [key_of(self.axis, step, pair, text) for text in texts]
        new = [(key, text) for key, text in zip(keys, texts, strict=True) if self.journal.get(key) is None]
        for batch in self._batches(new):
            scored = self._asked(pair, [text for _, text in batch], step)
            for (key, text), item in zip(batch, scored, strict=True):
                entry = {"side": side, "prompt": pair.id, "kind": text.kind, "step": step and step.name}
                self.journal.append(key, entry | self._entry(item, step))
        found = self.journal.get(keys[0])
        return list(found["token_ids"]) if found else []

    def sums(self, pair: Pair, text: Text) -> dict[str, Sums]:
        """What the journal has of a text, by step."""
        found: dict[str, Sums] = {}
        for step in self.requests:
            entry = self.journal.get(key_of(self.axis, step, pair, text)) or {}
            found |= {name: Sums.from_json(sums) for name, sums in entry.get("steps", {}).items()}
        return found

    def asked_anew(self, pair: Pair, text: Text) -> dict[str, Sums]:
        """A text's sums under the first request, whatever the journal has."""
        scored = self._asked(pair, [text], self.requests[0])
        return _by_step(scored[0], self.axis, self.requests[0])

    def _batches(self, new: Sequence[tuple[str, Text]]) -> Iterator[list[tuple[str, Text]]]:
        """Texts that fit one request by the server's usual bounds: a text has no more tokens than bytes."""
        columns = len(self.axis.steps) + 1 if self.axis.is_training else 1
        batch, size = list[tuple[str, Text]](), 0
        for key, text in new:
            scores = (text.size_bytes + 1) * columns * SCORES_A_TOKEN
            if batch and (len(batch) == MAX_ITEMS or size + scores > MAX_SCORES):
                yield batch
                batch, size = [], 0
            batch.append((key, text))
            size += scores
        if batch:
            yield batch

    def _asked(self, pair: Pair, texts: Sequence[Text], step: Step | None) -> ScoreResult:
        members = self.axis.names if step is None else []
        items = [text.item(pair) for text in texts]
        eft = {} if step is None else dict(step.eft)
        try:
            return self.client.score(
                items, model=self.axis.model, members=members or False, statistics=True, **eft
            )
        except NotFound as error:
            raise DynamicsError(f"only EFT servers score (POST /v1/eft/score): {error}") from error
        except EftError as error:
            if NO_END in str(error):
                raise DynamicsError(f"{self.axis.model} has no end-of-turn token; give --no-end") from error
            raise DynamicsError(f"prompt {pair.id!r}, {self.axis.model}: {error}") from error

    def _entry(self, item: ScoredItem, step: Step | None) -> dict[str, Any]:
        steps = _by_step(item, self.axis, step)
        return {
            "token_ids": list(item.token_ids),
            "steps": {name: sums.as_json() for name, sums in steps.items()},
        }


def _by_step(item: ScoredItem, axis: Axis, step: Step | None) -> dict[str, Sums]:
    if step is not None:
        return {step.name: Sums.of(item.composite)}
    missing = [name for name in axis.names if name not in item.members]
    if missing:
        raise DynamicsError(f"{axis.model}: the answer has no scores of {', '.join(missing)}")
    return {name: Sums.of(item.members[name]) for name in axis.names}
