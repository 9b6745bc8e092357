"""Asking for activations: what a store does not hold yet, in requests as large as the server allows.

Shape suffixes: C tokens of a completion, H hidden, R rows.
"""

import base64
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.errors import BadRequest, NotFound
from eft_client.probe.errors import ProbeError
from eft_client.probe.examples import ReadText
from eft_client.probe.store import Read, Store, Wanted
from eft_client.results import ScoredItem, ScoreResult
from eft_client.sync import EftClient

__all__ = ["PER_REQUEST", "collect"]

PER_REQUEST = 8
"""Texts in a request, unless their activations are too large for the server."""

_BOUND, _ALLOWS, _BASE = "max_activation_bytes", "server.activations", "base"

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
        [item] = self._score([text], "all", "last").raw["data"]
        given = [{int(layer) for layer in self._member(item, name)} for name in self.wanted.members]
        known = sorted(set.intersection(*given))
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
        for index, (scored, raw) in enumerate(self._items(texts, self.layers)):
            states = {
                (name, layer): _array(self._member(raw, name).get(str(layer)), name, layer)
                for name in self.wanted.members
                for layer in self.layers
            }
            yield self._chosen(scored, texts[index], states, {w: found[index] for w, found in over.items()})

    def _items(self, texts: Sequence[ReadText], layers: list[int]) -> list[tuple[ScoredItem, dict[str, Any]]]:
        """Items of as many requests as it takes: fewer texts in each, then fewer layers."""
        try:
            result = self._score(texts, layers, self.wanted.pool)
        except BadRequest as error:
            if _BOUND not in str(error) or len(texts) == len(layers) == 1:
                raise
        else:
            return list(zip(result, result.raw["data"], strict=True))
        if len(texts) > 1:
            half = self.size = len(texts) // 2
            return self._items(texts[:half], layers) + self._items(texts[half:], layers)
        half = len(layers) // 2
        [(scored, one)], [(_, other)] = self._items(texts, layers[:half]), self._items(texts, layers[half:])
        both = {name: self._member(one, name) | self._member(other, name) for name in self.wanted.members}
        return [(scored, {"activations": both})]

    def _score(self, texts: Sequence[ReadText], layers: list[int] | str, pool: str) -> ScoreResult:
        members = list(self.wanted.members)
        activations = {"members": members, "layers": layers, "site": self.wanted.site, "pool": pool}
        items = [text.item for text in texts]
        try:
            return self.client.score(items, model=self.wanted.model, members=members, activations=activations)
        except NotFound as error:
            raise ProbeError(f"only EFT servers have POST /v1/eft/score: {error}") from error
        except BadRequest as error:
            if _BOUND not in str(error) and _ALLOWS in str(error):
                raise ProbeError(
                    f"the server gives no activations; its family file has to say {_ALLOWS}: true"
                ) from error
            raise

    def _over(self, texts: Sequence[ReadText], weight: float) -> list[list[float]]:
        """What the composite gives each token more than the base does, with this weight of the expert."""
        weights = {self.wanted.expert: weight}
        result = self.client.score(
            [text.item for text in texts], model=self.wanted.model, weights=weights, members=[_BASE]
        )
        return [_differences(item.composite.logprobs, item.members[_BASE].logprobs) for item in result]

    def _member(self, item: Mapping[str, Any], name: str) -> dict[str, Any]:
        try:
            return dict(item["activations"][name])
        except (KeyError, TypeError, ValueError):
            raise ProbeError(f"the server's answer has no activations of {name!r}") from None

    def _chosen(
        self, scored: ScoredItem, text: ReadText, states: States, over: Mapping[float, Sequence[float]]
    ) -> tuple[Read, States]:
        """The rows that are kept of a text: all of a pooled one, else some tokens, by seed."""
        if self.wanted.expert not in scored.rewards:
            raise ProbeError(
                f"the server's answer has no reward of {self.wanted.expert!r}; expected an expert"
            )
        count, tokens = len(scored.token_ids), list[int]()
        if self.wanted.pool == "none":
            rng = random.Random(f"{self.wanted.seed} {text.key}")
            tokens = sorted(rng.sample(range(count), min(count, self.wanted.rows)))
        read = Read(
            token_ids=scored.token_ids,
            tokens=tokens,
            rewards=scored.rewards[self.wanted.expert].logprobs,
            over=over,
        )
        for (name, layer), states_CH in states.items():
            if states_CH.shape[:-1] != ((count,) if tokens else ()):
                raise ProbeError(
                    f"activations of {name!r}, layer {layer}: shape {list(states_CH.shape)} for {count} tokens"
                )
        return read, {
            name: states_CH[tokens] if tokens else states_CH[None] for name, states_CH in states.items()
        }


def _array(stated: Any, member: str, layer: int) -> NDArray[np.float32]:
    """The array that an answer holds: its shape, and base64 of little-endian float32 in C order."""
    try:
        values = np.frombuffer(base64.b64decode(stated["data"], validate=True), "<f4")
        array = values.reshape(stated["shape"]).astype(np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ProbeError(f"activations of {member!r}, layer {layer}: no array: {error}") from None
    if not np.isfinite(array).all():
        raise ProbeError(f"activations of {member!r}, layer {layer}: a number in them is not finite")
    return array


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    with np.errstate(invalid="ignore"):
        return [float(value) for value in np.subtract(first, second)]
