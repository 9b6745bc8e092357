"""The algebra between a behaviour and the numbers that the engine computes with. No torch.

With s_e = scale · w_e for each expert e, r(e) its reference, and v_r = (sum of |w_e| over r's experts) / (sum of all
|w_e|), the emulated small model and the up-scaling delta are

    z_small  =  sum over r of v_r · z_r  +  sum over e of s_e · (z_e − z_r(e))
    u        =  z_base − sum over r of v_r · z_r

and the family's answer is z_small + amplify · u. At amplify = 1 the references' v cancel, and what is left is
z_base + scale · sum of w_e · (z_e − z_r(e)), arXiv 2310.12962, equation 5. With one expert of weight 1, z_small is
the expert, and the answer is z_e + amplify · (z_base − z_ref).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from eft_server.family.family import BASE
from eft_server.family.file import Filter, ServerConfig

__all__ = ["BASE_FILTER", "EXPERT_FILTER", "Coefficients", "alone", "float32", "mix", "without"]

EXPERT_FILTER = 1
"""The filter that drops the up-scaling delta outside the emulated small model's nucleus."""

BASE_FILTER = 2
"""The filter that keeps only the base's nucleus."""

_KINDS = {"expert": EXPERT_FILTER, "base": BASE_FILTER}


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of one row of logits.

    Attributes:
        members: one coefficient for each, in the order of the family; float32-representable.
        delta: their part from the up-scaling delta, amplify · u, to which an expert filter applies; all zero for
            other rows.
        filter: none where top_p is 1.
    """

    members: tuple[float, ...]
    delta: tuple[float, ...]
    filter: Filter | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The form that the engine reads (`engine.worker.columns`): M numbers without a filter, else 2M + 2.

        With a filter, the first M leave the delta out.
        """
        if self.filter is None:
            return self.members
        always = tuple(float32(c - d) for c, d in zip(self.members, self.delta, strict=True))
        return (*always, *self.delta, float(_KINDS[self.filter.kind]), float32(self.filter.top_p))

    @property
    def counting(self) -> frozenset[int]:
        """The members' places that make a difference to the row."""
        places = {m for m, pair in enumerate(zip(self.members, self.delta, strict=True)) if any(pair)}
        return frozenset(places | ({0} if self.filter and self.filter.kind == "base" else set()))


def mix(
    config: ServerConfig,
    weights: Mapping[str, float],
    scale: float = 1.0,
    amplify: float = 1.0,
    keep: Filter | None = None,
) -> Coefficients:
    """Turn a behaviour into coefficients.

    Weights are rounded to float32 before they are summed, so that a reference cancels its expert exactly.

    Args:
        config: the family.
        weights: one for each expert.
        scale: the factor on all weights.
        amplify: the factor on the up-scaling delta.
        keep: the filter.
    """
    shares = {name: float32(scale * weight) for name, weight in weights.items()}
    terms: dict[str, list[float]] = {member: [] for member in config.family.names}
    terms[BASE].append(1.0)
    for name, share in shares.items():
        terms[name].append(share)
        terms[config.family.reference_of(name)].append(-share)
    filtered = keep is not None and keep.top_p < 1
    by_expert = filtered and keep is not None and keep.kind == "expert"
    delta = dict.fromkeys(config.family.names, 0.0)
    if amplify != 1 or by_expert:
        references = config.family.reference_shares(weights)
        upscaling = {m: float(m == BASE) - references.get(m, 0.0) for m in config.family.names}
        for member, part in upscaling.items():
            terms[member].append((amplify - 1) * part)
        if by_expert:
            delta = {m: float32(amplify * part) for m, part in upscaling.items()}
    coefficients = tuple(float32(math.fsum(terms[m])) for m in config.family.names)
    return Coefficients(coefficients, tuple(delta.values()), keep if filtered else None)


def alone(config: ServerConfig, member: str) -> Coefficients:
    """The coefficients of one member by itself."""
    members = tuple(float(name == member) for name in config.family.names)
    return Coefficients(members, (0.0,) * len(members))


def without(
    config: ServerConfig, coefficients: Coefficients, expert: str, weight: float, scale: float
) -> Coefficients:
    """The coefficients without one expert's term, scale · w_e · (z_e − z_ref(e)).

    Args:
        config: the family.
        coefficients: those of the behaviour.
        expert: the expert.
        weight: its weight there.
        scale: the factor on all weights there.
    """
    share = float32(scale * weight)
    members = list(coefficients.members)
    for name, part in ((expert, -share), (config.family.reference_of(expert), share)):
        place = config.family[name].place
        members[place] = float32(members[place] + part)
    return replace(coefficients, members=tuple(members))


def float32(value: float) -> float:
    """The nearest float32, never a negative zero, which would not pass for a zero weight."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded + 0.0
