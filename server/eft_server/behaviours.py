"""From what a request asks for to one coefficient per member, with every bound checked on the way.

The engine computes ``z = sum over members m of c_m * z_m``. A behaviour is friendlier: weights per expert and
a scale, ``z = z_base + scale * sum over experts e of w_e * (z_e - z_ref(e))``, from which follow

    c_e = scale * w_e,    c_ref = -scale * (sum of w_e over its experts),    c_base = 1

(less the base's share where the base is itself a reference). The coefficients always add up to 1.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eft_server.config import BASE, ServerConfig, Setting
from eft_server.errors import BehaviourError, UnknownModelError, shown

__all__ = ["Behaviours", "Resolved", "ServedModel"]

XARGS_PREFIX = "eft."
_XARGS_SCALE = "eft.scale"


@dataclass(frozen=True)
class Resolved:
    """A request's behaviour, complete and within bounds.

    Attributes:
        model: The model name that was asked for.
        weights: The weight of every expert; empty for a plain member.
        scale: The factor on all weights; 1 for a plain member.
        coefficients: One float32-representable number per member, in the order of ``ServerConfig.members``.
        plain: Whether one member answers alone.
    """

    model: str
    weights: dict[str, float]
    scale: float
    coefficients: tuple[float, ...]
    plain: bool


@dataclass(frozen=True)
class ServedModel:
    """One name under which the engine can be asked, with what it stands for.

    Attributes:
        id: The name for a request's ``model`` field.
        kind: The family itself, one of its aliases, or a member alone.
        weights: The weights that apply when a request gives none; empty for a member.
        scale: The scale that applies when a request gives none; 1 for a member.
        description: The operator's words.
        bounds: What a request may ask for, ``{"weights": {expert: range}, "scale": range, "total": number}``
            with ``range = {"min", "max"}``; None for a member, which takes no weights.
    """

    id: str
    kind: Literal["composite", "alias", "member"]
    weights: dict[str, float]
    scale: float
    description: str
    bounds: dict[str, Any] | None


class Behaviours:
    """The behaviours that a family serves."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._settings = {config.name: config.defaults, **config.aliases}
        self._members = {f"{config.name}/{member}": member for member in config.members}

    def resolve(
        self,
        model: str,
        eft: Mapping[str, Any] | None = None,
        xargs: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """Turn a request's model name and its weights into coefficients.

        Args:
            model: The family's name, an alias, or ``family/member`` for a member alone.
            eft: The JSON value of the field ``eft``: ``{"weights": {expert: number}, "scale": number}``.
                Weights replace the model's own as a whole: an expert that is not named counts 0. What is
                absent is the model's.
            xargs: The same, flat, as ``{"eft.<expert>": number, "eft.scale": number}`` from ``vllm_xargs``.

        Raises:
            UnknownModelError: No such model is served.
            BehaviourError: The weights are malformed, unknown or out of bounds, given in both forms, or given
                for a plain member.
        """
        asked = _Asked.from_xargs(xargs) if xargs else None
        if eft is not None:
            if asked is not None:
                raise BehaviourError("give weights either in eft or in vllm_xargs, not in both", "eft")
            asked = _Asked.from_eft(eft)
        if isinstance(model, str) and model in self._members:
            if asked is not None:
                message = (
                    f"{shown(model)} is a member alone and takes no weights; ask for {self._config.name!r}"
                )
                raise BehaviourError(message, asked.field)
            return self._plain(model)
        if not isinstance(model, str) or model not in self._settings:
            raise UnknownModelError(f"{shown(model)} is not served; known: {self._known_models()}", "model")
        return self._composite(model, asked or _Asked("eft", None, None))

    def served_models(self) -> list[ServedModel]:
        """Every name that ``resolve`` accepts: the family first, then its aliases, then its members."""
        config = self._config
        served = [self._served_setting(config.name, "composite", config.defaults, config.description)]
        for name, alias in config.aliases.items():
            served.append(self._served_setting(name, "alias", alias, alias.description))
        for model, member in self._members.items():
            description = config.member(member).description
            served.append(ServedModel(model, "member", {}, 1.0, description, None))
        return served

    def _served_setting(
        self, model: str, kind: Literal["composite", "alias"], setting: Setting, description: str
    ) -> ServedModel:
        return ServedModel(model, kind, dict(setting.weights), setting.scale, description, self._bounds())

    def _bounds(self) -> dict[str, Any]:
        limits = self._config.limits
        weights = {expert: limits.of(expert).model_dump() for expert in self._config.experts}
        return {"weights": weights, "scale": limits.scale.model_dump(), "total": limits.total}

    def _known_models(self) -> str:
        return ", ".join([*self._settings, *self._members])

    def _plain(self, model: str) -> Resolved:
        alone = self._members[model]
        coefficients = tuple(float(member == alone) for member in self._config.members)
        return Resolved(model, {}, 1.0, coefficients, plain=True)

    def _composite(self, model: str, asked: "_Asked") -> Resolved:
        setting = self._settings[model]
        weights = dict(setting.weights) if asked.weights is None else self._weights(asked, asked.weights)
        scale = setting.scale if asked.scale is None else asked.scale
        for key, message in self._config.limits.violations(weights, scale):
            raise BehaviourError(message, asked.param(*key))
        weights = {name: float(weight) for name, weight in weights.items()}
        return Resolved(model, weights, float(scale), self._coefficients(weights, float(scale)), plain=False)

    def _weights(self, asked: "_Asked", weights: Mapping[str, float]) -> dict[str, float]:
        experts = self._config.experts
        for name in weights:
            if name not in experts:
                message = f"unknown behaviour {shown(name)}; known: {', '.join(experts)}"
                raise BehaviourError(message, asked.param("weights", name))
        return {name: weights.get(name, 0.0) for name in experts}

    def _coefficients(self, weights: Mapping[str, float], scale: float) -> tuple[float, ...]:
        """Rounded to float32 before they are summed, so that a reference cancels its expert exactly."""
        config = self._config
        shares = {name: _float32(scale * weight) for name, weight in weights.items()}
        taken: dict[str, list[float]] = {member: [] for member in config.members}
        for name, share in shares.items():
            taken[config.reference_of(name)].append(share)
        own = {BASE: 1.0, **shares}
        return tuple(_float32(own.get(m, 0.0) - math.fsum(taken[m])) for m in config.members)


@dataclass(frozen=True)
class _Asked:
    """The weights and the scale in a request, checked to be numbers and for nothing else."""

    field: str
    weights: dict[str, float] | None
    scale: float | None

    @classmethod
    def from_eft(cls, eft: Any) -> "_Asked":
        if not isinstance(eft, Mapping):
            raise BehaviourError(f"must be an object with weights and scale, not {shown(eft)}", "eft")
        for key in eft:
            if key not in ("weights", "scale"):
                raise BehaviourError(f"unknown key {shown(key)}; known: weights, scale", _param("eft", key))
        weights = None
        if "weights" in eft:
            if not isinstance(eft["weights"], Mapping):
                message = f"must be an object of numbers by expert, not {shown(eft['weights'])}"
                raise BehaviourError(message, "eft.weights")
            weights = {name: _number(w, _param("eft", "weights", name)) for name, w in eft["weights"].items()}
        scale = _number(eft["scale"], "eft.scale") if "scale" in eft else None
        return cls("eft", weights, scale)

    @classmethod
    def from_xargs(cls, xargs: Mapping[str, Any]) -> "_Asked":
        if not isinstance(xargs, Mapping):
            raise BehaviourError(f"must be an object, not {shown(xargs)}", "vllm_xargs")
        weights: dict[str, float] = {}
        for key, value in xargs.items():
            if not isinstance(key, str) or not key.startswith(XARGS_PREFIX):
                message = f"unknown key {shown(key)}; known: eft.scale and eft.<expert>"
                raise BehaviourError(message, _param("vllm_xargs", key))
            if key != _XARGS_SCALE:
                weights[key.removeprefix(XARGS_PREFIX)] = _number(value, _param("vllm_xargs", key))
        scale = _number(xargs[_XARGS_SCALE], "vllm_xargs.eft.scale") if _XARGS_SCALE in xargs else None
        return cls("vllm_xargs", weights or None, scale)

    def param(self, *key: str) -> str:
        """The request field of a key such as ("weights", "helpful")."""
        if self.field == "eft":
            return _param("eft", *key)
        return _param("vllm_xargs", "eft", *(part for part in key if part != "weights"))


def _number(value: Any, param: str) -> float:
    """A finite number, left as it is: a huge integer still compares with bounds, but has no float.

    Raises:
        BehaviourError: The value is not a number (a boolean is not one), or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BehaviourError(f"must be a number, not {shown(value)}", param)
    if isinstance(value, float) and not math.isfinite(value):
        raise BehaviourError(f"must be a finite number, not {value}", param)
    return value


def _float32(value: float) -> float:
    """The nearest float32, without a negative zero, which would mark a zero weight as something else."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded + 0.0


def _param(*key: Any) -> str:
    return ".".join(part if isinstance(part, str) and _is_plain(part) else shown(part) for part in key)


def _is_plain(text: str) -> bool:
    return len(text) <= 64 and text.isprintable()
