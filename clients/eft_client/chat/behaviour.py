"""The behaviour of the next answer: a model name, and what is set for it, within what the server allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eft_client.errors import WrongArgument
from eft_client.results import Behaviours, ModelCard

__all__ = ["Behaviour"]

_SLACK = 1e-9
"""Of a sum of weights, which is not exact: 0.7 + 0.2 + 0.1 > 1."""


@dataclass(frozen=True)
class Behaviour:
    """A model and the `eft` object that goes with it.

    Attributes:
        card: the model, as the server lists it.
        family: what the server's experts may be asked for.
        eft: what was set; the model's defaults apply to what is absent.
    """

    card: ModelCard
    family: Behaviours
    eft: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, changes: Mapping[str, Any]) -> "Behaviour":
        """The same with these keys of `eft` set.

        Raises:
            WrongArgument: The model takes no weights, an expert is unknown, or a number is out of bounds.
        """
        if changes and not self.takes_weights:
            reason = "is a single member" if self.card.kind == "member" else "is not of an EFT server"
            raise WrongArgument(f"{self.card.id} {reason} and takes no weights")
        new = replace(self, eft={**self.eft, **changes})
        new._require_bounds()
        return new

    def without(self, key: str) -> "Behaviour":
        """The same with this key left to the model.

        Raises:
            WrongArgument: What remains is out of bounds with the model's own.
        """
        new = replace(self, eft={name: value for name, value in self.eft.items() if name != key})
        new._require_bounds()
        return new

    @property
    def weights(self) -> dict[str, float]:
        """The weights that apply; an expert that is not named counts 0."""
        return dict(self.eft.get("weights", self.card.weights))

    @property
    def label(self) -> str:
        """The model and what applies, short: `demo helpful=0.7 harmless=0.3 scale=0.5`."""
        words = [self.card.id, *(f"{name}={value:g}" for name, value in self.weights.items() if value)]
        for key in ("scale", "amplify"):
            value = self.eft.get(key, getattr(self.card, key))
            words += [f"{key}={value:g}"] * (value != 1)
        keep = self.eft.get("filter", self.card.filter)
        words += [f"filter={keep['kind']}:{keep['top_p']:g}"] if keep else []
        return " ".join(words)

    @property
    def takes_weights(self) -> bool:
        """Whether there is anything to set."""
        return self.card.kind in ("composite", "alias")

    def _require_bounds(self) -> None:
        if not self.takes_weights:
            return
        known = {expert.name: expert for expert in self.family}
        for name, weight in self.eft.get("weights", {}).items():
            if name not in known:
                raise WrongArgument(f"there is no expert {name!r}; known: {', '.join(known)}")
            _require(name, weight, (known[name].min, known[name].max))
        scale = self.eft.get("scale", self.card.scale)
        _require("scale", scale, self.family.scale_bounds)
        _require("amplify", self.eft.get("amplify", self.card.amplify), self.family.amplify_bounds)
        total = scale * sum(map(abs, self.weights.values()))
        if self.family.total is not None and total > self.family.total + _SLACK:
            raise WrongArgument(
                f"scale · Σ|weight| = {total:g} is out of bounds; allowed: up to {self.family.total:g}"
            )


def _require(name: str, value: float, bounds: tuple[float, float]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise WrongArgument(f"{name}={value:g} is out of bounds; allowed: {bounds[0]:g} to {bounds[1]:g}")
