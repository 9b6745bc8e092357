"""The texts that a model of the family writes: the reference's own answers, and rephrases.

What was written is kept in a journal, so that a second run scores the same texts.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.texts.text import Place, Text, places
from eft_client.errors import ServerAnswered
from eft_client.pairs.pair import Pair
from eft_client.quality.journal import Journal, content_key
from eft_client.sync import EftClient

__all__ = ["Writer", "initial_answers", "rephrased"]

_REPHRASE = (
    "Say the following in other words. Keep its meaning, its length and its tone, and write nothing but the new "
    "text.\n\n{text}"
)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A member that writes.

    Attributes:
        client: of the server.
        journal: what was written, by the content of the request.
        model: the member's model name, such as demo/small.
        max_tokens: the longest text.
        temperature: 0 is greedy.
        seed: of the sampling.
        at_once: requests under way at once.
    """

    client: EftClient
    journal: Journal
    model: str
    max_tokens: int
    temperature: float
    seed: int
    at_once: int

    def write(self, pair: Pair, context: Mapping[str, Any]) -> tuple[str, bool]:
        """A text, and whether the model ended it itself; empty where it had nothing to say."""
        body = {**context, "model": self.model, **self._sampling}
        key = content_key({"writes": body})
        entry = self.journal.get(key)
        if entry is None:
            entry = {"prompt": pair.id, "model": self.model} | self._asked(pair, context)
            self.journal.append(key, entry)
        return entry["text"], entry["finished"]

    @property
    def _sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}

    def _asked(self, pair: Pair, context: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if "messages" in context:
                answer: Any = self.client.chat(context["messages"], model=self.model, **self._sampling)
            else:
                answer = self.client.complete(context["prompt"], model=self.model, **self._sampling)
        except ServerAnswered as error:
            raise DynamicsError(f"prompt {pair.id!r}: {self.model} could not answer: {error}") from error
        choice = answer.choices[0]
        return {"text": choice.text, "finished": choice.finish_reason == "stop"}


def initial_answers(
    writer: Writer, pairs: Mapping[str, Sequence[Pair]], advance: Callable[[], object], *, end: bool
) -> dict[Place, Text]:
    """The reference's own answer to every prompt, by its place; none where the reference says nothing."""
    written: dict[Place, Text] = {}

    def write(place: Place) -> None:
        pair = pairs[place[0]][place[1]]
        text, finished = writer.write(pair, pair.context)
        if text:
            written[place] = Text("initial", text, end and finished)
        advance()

    with ThreadPoolExecutor(writer.at_once) as pool:
        list(pool.map(write, places(pairs)))
    return written


def rephrased(
    writer: Writer, pairs: Mapping[str, Sequence[Pair]], advance: Callable[[], object]
) -> dict[str, list[Pair]]:
    """The pairs with rephrases of both answers where the data has none."""

    def with_rephrases(pair: Pair) -> Pair:
        update: dict[str, str] = {}
        for name in ("chosen", "rejected"):
            text = getattr(pair, name)
            if text and not getattr(pair, f"{name}_rephrased"):
                question = [{"role": "user", "content": _REPHRASE.format(text=text)}]
                said, _ = writer.write(pair, {"messages": question})
                if said.strip() and said.strip() != text.strip():
                    update[f"{name}_rephrased"] = said.strip()
            advance()
        return replace(pair, **update)

    with ThreadPoolExecutor(writer.at_once) as pool:
        return {side: list(pool.map(with_rephrases, found)) for side, found in pairs.items()}
