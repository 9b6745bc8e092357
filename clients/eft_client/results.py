"""What comes back, as plain values: answers, pieces of one, models, behaviours, scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from typing_extensions import override

from eft_client.printable import printable, shortened

__all__ = [
    "Behaviours",
    "ChatResult",
    "Choice",
    "Expert",
    "MemberScores",
    "ModelCard",
    "Piece",
    "Reward",
    "ScoreItem",
    "ScoreResult",
    "ScoredItem",
    "TextResult",
    "Usage",
]

SHOWN_CHARS = 120
Kind = Literal["composite", "alias", "member"]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of the answers to a request.

    Attributes:
        index: Its place among them.
        text: What was said; empty where the model called tools instead.
        finish_reason: Why it ended: "stop", "length", "tool_calls" …
        logprobs: The server's JSON on them, if asked for.
        message: In a chat, the whole message: tool calls and reasoning are in it.
    """

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: Mapping[str, Any] | None = None
    message: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, repr=False)
class TextResult:
    """The answer to a request for text.

    Attributes:
        choices: One for each of the `n` asked for (and for each prompt), by index.
        model: The name that answered.
        usage: Tokens read and written, if the server counts them.
        eft: The behaviour that was applied, complete; None from a server that knows of none.
        id: The server's name for the answer.
        raw: The server's JSON, whole.
    """

    choices: tuple[Choice, ...]
    model: str
    usage: Usage | None
    eft: Mapping[str, Any] | None
    id: str | None
    raw: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].text

    @override
    def __repr__(self) -> str:
        more = f" and {len(self.choices) - 1} more" if len(self.choices) > 1 else ""
        return f"<{type(self).__name__} of {shortened(self.model, 80)}: {_quoted(self.text)}{more}>"

    @override
    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, repr=False)
class ChatResult(TextResult):
    """The answer to a chat; see TextResult for its attributes."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer as it is written.

    Attributes:
        text: What it adds; empty in pieces that only tell something.
        index: The choice that it belongs to.
        finish_reason: In a choice's last piece, why it ended.
        eft: In the first piece, the behaviour that is applied.
        logprobs: The server's JSON on them, if asked for.
        usage: In the last piece, if asked for with ``stream_options={"include_usage": True}``.
        delta: The server's JSON: parts of tool calls and of reasoning are in it.
    """

    text: str
    index: int = 0
    finish_reason: str | None = None
    eft: Mapping[str, Any] | None = None
    logprobs: Mapping[str, Any] | None = None
    usage: Usage | None = None
    delta: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One name that a server answers to.

    Attributes:
        id: The name.
        kind: The family itself, one of its aliases, or a member alone; None where the server does not say.
        weights: The weights that apply when a request gives none.
        scale: The scale that applies when a request gives none.
        amplify: The factor on the up-scaling delta that applies when a request gives none.
        filter: The filter that applies when a request gives none.
        bounds: What a request may ask for: ``{"weights": {expert: {"min", "max"}}, "scale": {"min", "max"},
            "amplify": …, "coefficients": … or None, "total": number}``; None where it takes no weights.
        description: The operator's words.
        max_model_len: The context, in tokens.
    """

    id: str
    kind: Kind | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    amplify: float = 1.0
    filter: Mapping[str, Any] | None = None
    bounds: Mapping[str, Any] | None = None
    description: str = ""
    max_model_len: int | None = None


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One expert: the weight that it has when a request gives none, and the ones that a request may give."""

    name: str
    weight: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Behaviours:
    """What a server can be asked to be; as text, and in a notebook, a table.

    Attributes:
        model: The name of the composite; None from a server that has none.
        experts: The experts, with the composite's weights and their bounds.
        scale: The composite's scale.
        scale_bounds: The least and the greatest that a request may ask for.
        amplify: The composite's factor on the up-scaling delta.
        amplify_bounds: The least and the greatest that a request may ask for.
        total: What ``scale · Σ|w|`` may come to; None where there is no bound.
        aliases: Names that stand for other weights.
        members: Names of members alone.
    """

    model: str | None
    experts: tuple[Expert, ...]
    scale: float
    scale_bounds: tuple[float, float]
    amplify: float
    amplify_bounds: tuple[float, float]
    total: float | None
    aliases: tuple[ModelCard, ...]
    members: tuple[ModelCard, ...]

    def __getitem__(self, name: str) -> Expert:
        """The expert of this name."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        raise KeyError(f"{name!r}; known: {', '.join(expert.name for expert in self.experts) or 'none'}")

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("name", "what", "weights", "allowed", "description")]
        if self.model is not None:
            least, greatest = self.scale_bounds
            total = "" if self.total is None else f"; scale · Σ|w| to {self.total:g}"
            allowed = f"scale {least:g} to {greatest:g}{total}"
            defaults = {expert.name: expert.weight for expert in self.experts}
            rows.append((self.model, "composite", _weights(defaults, self.scale), allowed, ""))
        for expert in self.experts:
            bounds = f"{expert.min:g} to {expert.max:g}"
            rows.append((expert.name, "expert", f"{expert.weight:g}", bounds, ""))
        for alias in self.aliases:
            rows.append((alias.id, "alias", _weights(alias.weights, alias.scale), "", alias.description))
        for member in self.members:
            rows.append((member.id, "member alone", "", "", member.description))
        return rows

    @override
    def __repr__(self) -> str:
        rows = [[shortened(cell, SHOWN_CHARS) for cell in row] for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = ([escape(printable(cell)) for cell in row] for row in self._rows())
        table = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
        for row in rows:
            table += "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        return f"<table>{table}</table>"


@dataclass(frozen=True, kw_only=True)
class ScoreItem:
    """A text to score: what came before it, and the completion itself.

    Attributes:
        completion: The text to score, or its token ids.
        messages: The chat that it answers; or
        prompt: the text, or the token ids, that it continues. One of the two.
        prompts: beside a prompt, text or token ids by member, for members that are not to read it.
        end: Whether the end of the turn is part of the completion.
    """

    completion: str | Sequence[int]
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | Sequence[int] | None = None
    prompts: Mapping[str, str | Sequence[int]] | None = None
    end: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class MemberScores:
    """What one model gives a completion, a number for each of its tokens.

    Attributes:
        logprobs: log-probabilities; −inf for a token that cannot come.
        total: Their sum.
        ranks: 1 for the likeliest token.
        top_logprobs: the log-probability of the likeliest token in the same place.
    """

    logprobs: tuple[float, ...]
    total: float
    ranks: tuple[int, ...]
    top_logprobs: tuple[float, ...]

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.total:.4g} over {len(self.logprobs)} tokens>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Reward:
    """An expert's implicit reward, log π_expert − log π_reference, for each token, and its sum.

    A number that is not finite, where either gives a token no probability at all, is NaN.
    """

    logprobs: tuple[float, ...]
    total: float

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.total:.4g} over {len(self.logprobs)} tokens>"


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoredItem:
    """The scores of one item.

    Attributes:
        index: Its place among those asked for.
        token_ids: The completion's tokens.
        tokens: Their texts.
        composite: The scores under the weights asked for.
        members: The scores under each member alone.
        rewards: The implicit reward by expert.
    """

    index: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    composite: MemberScores
    members: Mapping[str, MemberScores]
    rewards: Mapping[str, Reward]

    @property
    def perplexity(self) -> float:
        """The exponential of the composite's mean negative log-probability of a token."""
        mean = -self.composite.total / max(1, len(self.token_ids))
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf

    @override
    def __repr__(self) -> str:
        rewards = ", ".join(f"{shortened(n, 40)} {r.total:.4g}" for n, r in self.rewards.items())
        told = f"; rewards: {rewards}" if rewards else ""
        return f"<ScoredItem {self.index}: {_quoted(''.join(self.tokens))} {self.composite.total:.4g}{told}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoreResult:
    """The scores of a request's items, in their order.

    Attributes:
        items: One for each item asked for.
        model: The name that scored.
        usage: Tokens read, if the server counts them.
        eft: The behaviour that was applied, complete.
        id: The server's name for the answer.
        raw: The server's JSON, whole.
    """

    items: tuple[ScoredItem, ...]
    model: str
    usage: Usage | None
    eft: Mapping[str, Any] | None
    id: str | None
    raw: Mapping[str, Any]

    def __getitem__(self, index: int) -> ScoredItem:
        """The item at this place."""
        return self.items[index]

    def __iter__(self) -> Iterator[ScoredItem]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @override
    def __repr__(self) -> str:
        lines = "".join(f"\n  {item!r}" for item in self.items[:10])
        more = f"\n  … and {len(self.items) - 10} more" if len(self.items) > 10 else ""
        return f"<ScoreResult of {shortened(self.model, 80)}{lines}{more}>"


def _weights(weights: Mapping[str, float], scale: float) -> str:
    told = " ".join(f"{name}={weight:g}" for name, weight in weights.items())
    return told if scale == 1 else f"{told} scale={scale:g}"


def _quoted(text: str) -> str:
    return f"'{shortened(text, SHOWN_CHARS)}'"
