"""What each expert adds to a token's logit.

With p the members' distributions, s_e = scale · w_e, and u = log p_base − sum over r of v_r · log p_r the up-scaling
delta (`behaviour.coefficients`), the composite's logit is, up to a constant of the row,

    log p_base  +  sum over experts e of s_e · (log p_e − log p_ref(e))  +  (amplify − 1) · u  +  the filter's part

where an expert filter takes amplify · u away outside the nucleus, and a base filter everything. The logit of a single
member, or of coefficients of the request's own, is the sum over members of c_m · log p_m.

Shape suffixes: C explained tokens, N1 the token itself and the likeliest ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eft_server.behaviour.resolve import Resolved
from eft_server.family.family import BASE
from eft_server.family.file import ServerConfig

__all__ = ["Contributions", "reward"]


@dataclass(frozen=True)
class Contributions:
    """The parts of the logits, each (C, N1), in nats.

    Attributes:
        members: of every member with a coefficient, for a plain member or coefficients of the request's own.
        base: of the base; None with `members`.
        experts: of every expert; empty with `members`.
        amplify: of the up-scaling delta beyond its ordinary share; None with `members`.
        filter: of the filter: 0 where it changes nothing, −inf where it removes the token.
    """

    members: dict[str, np.ndarray]
    base: np.ndarray | None
    experts: dict[str, np.ndarray]
    amplify: np.ndarray | None
    filter: np.ndarray

    @classmethod
    def of(
        cls,
        config: ServerConfig,
        resolved: Resolved,
        alone: Mapping[str, np.ndarray],
        filtered: np.ndarray | None,
    ) -> "Contributions":
        """Divide logits into parts.

        Args:
            config: the family.
            resolved: the behaviour.
            alone: log-probabilities under every member.
            filtered: what the filter adds (`message.Explained.filter_CN1`).
        """
        nothing = np.zeros_like(alone[BASE])
        added = nothing if filtered is None else filtered
        if resolved.plain or resolved.own_coefficients is not None:
            coefficients = zip(config.family.names, resolved.coefficients.members, strict=True)
            members = {name: c * alone[name] for name, c in coefficients if c}
            return cls(members, None, {}, None, added)
        experts = {
            name: resolved.scale * weight * reward(config, alone, name)
            if weight and resolved.scale
            else nothing
            for name, weight in resolved.weights.items()
        }
        amplified = nothing
        if resolved.amplify != 1:
            shares = config.family.reference_shares(resolved.weights)
            delta = alone[BASE] - sum((v * alone[r] for r, v in shares.items() if v), nothing)
            amplified = (resolved.amplify - 1) * delta
        return cls({}, alone[BASE], experts, amplified, added)

    @property
    def total(self) -> np.ndarray:
        """The sum of all parts: the composite's logit up to a constant of the row."""
        parts = [*self.members.values(), *self.experts.values()]
        parts += [part for part in (self.base, self.amplify) if part is not None]
        total: np.ndarray = np.sum([*parts, self.filter], axis=0)
        return total


def reward(config: ServerConfig, alone: Mapping[str, np.ndarray], expert: str) -> np.ndarray:
    """An expert's implicit reward; what both it and its reference exclude counts as minus infinity.

    Args:
        config: the family.
        alone: log-probabilities under every member.
        expert: the expert.
    """
    with np.errstate(invalid="ignore"):
        gains = alone[expert] - alone[config.family.reference_of(expert)]
    found: np.ndarray = np.where(np.isnan(gains), -np.inf, gains)
    return found
