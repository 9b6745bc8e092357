"""Asking for activations: what a store does not hold yet, in requests as large as the server allows.

Shape suffixes: C tokens of a completion, H hidden.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eft_client.errors import BadRequest, NotFound
from eft_client.pairs.errors import NO_END
from eft_client.pairs.results import TOLERANCE_A_TOKEN
from eft_client.probe.errors import ProbeError
from eft_client.probe.examples import ReadText
from eft_client.probe.store import Read, Store, Wanted
from eft_client.results import LayerActivations, ScoredItem, ScoreResult
from eft_client.sync import EftClient

__all__ = ["PER_REQUEST", "TOO_LARGE", "collect", "require_same_weights"]

PER_REQUEST = 8
"""Texts in a request, unless their activations are too large for the server."""

TOO_LARGE = "bytes of states"
"""What a server says of more activations than a request may have."""

_ALLOWS = "server.activations"
"""What it says of any, where it gives none."""

_ITEM = re.compile(r"items\.(\d+)")
"""How it names the text that an error is about."""

_BASE = "base"

_ASKED_ANEW = 4
"""How many texts of a run that goes on are read once more."""

States = dict[tuple[str, int], NDArray[np.float32]]


def collect(
    client: EftClient, texts: Sequence[ReadText], store: Store, advance: Callable[[int], object]
) -> None:
    """Fill a store.

    Args:
        client: Of an engine or a server.
        texts: All of them, in the order of the store.
        store: Where they go.
        advance: Called with the number of texts that came.

    Raises:
        ProbeError: The server gives no activations, no rewards, or others than it was asked for.
        EftError: It does not answer.
    """
    missing = [(place, text) for place, text in enumerate(texts) if not store.has(text.key)]
    if not missing:
        return
    asker = _Asker(client, store.wanted)
    asker.survey(missing[0][1])
    while missing:
        batch = missing[: asker.size]
        answers = asker.ask([text for _, text in batch])
        for (place, text), (read, states) in zip(batch, answers, strict=True):
            store.write(text.key, place, read, states)
        advance(len(batch))
        del missing[: len(batch)]


def require_same_weights(client: EftClient, texts: Sequence[ReadText], store: Store) -> None:
    """Ask anew for some rewards that the store has: they must come out as they did then.

    Raises:
        ProbeError: They do not.
        EftError: The server does not answer.
    """
    kept, expert = (
        list(islice((text for text in texts if store.has(text.key)), _ASKED_ANEW)),
        store.wanted.expert,
    )
    if not kept:
        return
    members = list(store.wanted.members)
    scores = client.score([text.item for text in kept], model=store.wanted.model, members=members)
    for text, item in zip(kept, scores, strict=True):
        then = np.asarray(store.read(text.key).rewards, dtype=np.float64)
        now = np.asarray(item.rewards[expert].logprobs if expert in item.rewards else (), dtype=np.float64)
        if not _alike(then, now):
            raise ProbeError(
                f"{expert}'s reward of a text was {np.nansum(then):.2f} nats when its activations were kept, and is "
                f"{np.nansum(now):.2f} now, so the weights have changed; give another --output"
            )


def _alike(then_C: NDArray[np.float64], now_C: NDArray[np.float64]) -> bool:
    """Whether two readings of a text can be by the same weights."""
    finite = np.isfinite(now_C)
    if then_C.shape != now_C.shape or not np.array_equal(finite, np.isfinite(then_C)):
        return False
    return not finite.any() or bool(np.abs(now_C - then_C)[finite].mean() <= TOLERANCE_A_TOKEN)


@dataclass
class _Asker:
    """Requests for activations, which shrink where the server says that they are too large."""

    client: EftClient
    wanted: Wanted
    size: int = PER_REQUEST
    layers: list[int] = field(default_factory=list)

    def survey(self, text: ReadText) -> None:
        """Find out which layers there are, by one text, whose activations are small when they are pooled.

        Raises:
            ProbeError: One that is asked for is not there.
        """
        [item] = self._score([text], "all", "last")
        known = sorted(set.intersection(*(set(self._layers_in(item, name)) for name in self.wanted.members)))
        for layer in self.wanted.layers or ():
            if not -len(known) <= layer < len(known):
                raise ProbeError(
                    f"layer {layer}: {' and '.join(self.wanted.members)} have {len(known)}, from 0 on"
                )
        asked = range(len(known)) if self.wanted.layers is None else self.wanted.layers
        self.layers = sorted({known[layer] for layer in asked})

    def ask(self, texts: Sequence[ReadText]) -> Iterator[tuple[Read, States]]:
        """Each text's scores and activations."""
        over = {weight: self._over(texts, weight) for weight in self.wanted.over}
        for index, (item, states) in enumerate(self._items(texts, self.layers)):
            if self.wanted.expert not in item.rewards:
                raise ProbeError(
                    f"the server's answer has no reward of {self.wanted.expert!r}; expected an expert"
                )
            tokens = self._chosen(texts[index], len(item.token_ids))
            read = Read(
                token_ids=item.token_ids,
                tokens=tokens,
                rewards=item.rewards[self.wanted.expert].logprobs,
                over={weight: found[index] for weight, found in over.items()},
            )
            yield read, {name: states_CH[tokens or [0]] for name, states_CH in states.items()}

    def _chosen(self, text: ReadText, count: int) -> list[int]:
        """Some of a text's tokens, by seed; none where it is pooled."""
        if self.wanted.pool != "none":
            return []
        rng = random.Random(f"{self.wanted.seed} {text.key}")
        return sorted(rng.sample(range(count), min(count, self.wanted.rows)))

    def _items(self, texts: Sequence[ReadText], layers: list[int]) -> list[tuple[ScoredItem, States]]:
        """Items of as many requests as it takes: fewer texts in each, then fewer layers."""
        try:
            return [
                (item, self._states(item, layers)) for item in self._score(texts, layers, self.wanted.pool)
            ]
        except BadRequest as error:
            if TOO_LARGE not in str(error) or len(texts) == len(layers) == 1:
                raise
        if len(texts) > 1:
            half = self.size = len(texts) // 2
            return self._items(texts[:half], layers) + self._items(texts[half:], layers)
        half = len(layers) // 2
        [(item, first)], [(_, second)] = self._items(texts, layers[:half]), self._items(texts, layers[half:])
        return [(item, first | second)]

    def _score(self, texts: Sequence[ReadText], layers: list[int] | Literal["all"], pool: str) -> ScoreResult:
        members = list(self.wanted.members)
        try:
            return self.client.score(
                [text.item for text in texts],
                model=self.wanted.model,
                members=members,
                activations={"members": members, "layers": layers, "site": self.wanted.site, "pool": pool},
            )
        except NotFound as error:
            raise ProbeError(f"only EFT servers have POST /v1/eft/score: {error}") from error
        except BadRequest as error:
            if _ALLOWS in str(error):
                raise ProbeError(
                    f"the server gives no activations; its family file has to say {_ALLOWS}: true"
                ) from error
            if NO_END in str(error):
                raise ProbeError(f"{self.wanted.model} has no end-of-turn token; give --no-end") from error
            if place := _ITEM.match(error.message):
                of = texts[int(place[1])].item
                question = of.prompt or (of.messages[-1]["content"] if of.messages else "")
                raise ProbeError(f"the prompt {str(question)!r:.80}: {error}") from error
            raise

    def _over(self, texts: Sequence[ReadText], weight: float) -> list[list[float]]:
        """What the composite gives each token more than the base does, with this weight of the expert."""
        weights = {self.wanted.expert: weight}
        result = self.client.score(
            [text.item for text in texts], model=self.wanted.model, weights=weights, members=[_BASE]
        )
        return [_differences(item.composite.logprobs, item.members[_BASE].logprobs) for item in result]

    def _layers_in(self, item: ScoredItem, name: str) -> Mapping[int, LayerActivations]:
        if name not in item.activations:
            raise ProbeError(f"the server's answer has no activations of {name!r}")
        return item.activations[name]

    def _states(self, item: ScoredItem, layers: Sequence[int]) -> States:
        """Arrays by member and layer, one row where they are pooled."""
        count, found = len(item.token_ids), States()
        expected = 2 if self.wanted.pool == "none" else 1
        for name in self.wanted.members:
            given = self._layers_in(item, name)
            for layer in layers:
                array = given[layer].array() if layer in given else np.empty(0, np.float32)
                if array.ndim != expected or len(array) == 0 or (expected == 2 and len(array) != count):
                    raise ProbeError(
                        f"activations of {name!r}, layer {layer}: shape {list(array.shape)}, {count} tokens"
                    )
                found[name, layer] = array if expected == 2 else array[None]
        return found


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    with np.errstate(invalid="ignore"):
        return [float(value) for value in np.subtract(first, second)]
