"""From a request's behaviour to one coefficient for each member, with every bound checked on the way.

The engine computes ``z = sum over members m of c_m * z_m``. A behaviour is easier to choose: weights per expert and
a scale, ``z = z_base + scale * sum over experts e of w_e * (z_e - z_ref(e))``. It follows that

    c_e = scale * w_e,    c_ref = -scale * (sum of w_e over its experts),    c_base = 1

(minus the base's share where the base is itself a reference). Unless the request gives its own coefficients, they sum
to 1. `coefficients` has the algebra, `request` the request's forms, `model_name` that in a model's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from eft_server.behaviour import model_name
from eft_server.behaviour.coefficients import Coefficients, alone, float32, mix
from eft_server.behaviour.request import BehaviourRequest
from eft_server.errors import BehaviourError, UnknownModelError, shown
from eft_server.family.file import Filter, Range, ServerConfig, Setting

__all__ = ["Behaviours", "Resolved", "ServedModel"]


@dataclass(frozen=True)
class Resolved:
    """A request's behaviour, complete and within bounds.

    Attributes:
        model: The model name in the request; if that has weights, in the one form that `model_name.canonical` writes.
        served: The same without weights: the family, an alias or a member, of which there are few.
        weights: The weight of every expert; empty for a plain member.
        scale: The factor on all weights; 1 for a plain member.
        amplify: The factor on the up-scaling delta; 1 for a plain member.
        filter: Where the small models are trusted; None for everywhere.
        coefficients: The coefficients that the engine computes with.
        plain: Whether a single member answers.
        own_coefficients: The request's coefficients by member, if it gave them instead of weights.
        report: Whether the answer tells what differs from the base.
    """

    model: str
    served: str
    weights: dict[str, float]
    scale: float
    amplify: float
    filter: Filter | None
    coefficients: Coefficients
    plain: bool = False
    own_coefficients: dict[str, float] | None = None
    report: bool = False

    @property
    def counting(self) -> frozenset[int]:
        """The places of the members that are read for it: those that contribute, and the base for a report."""
        return self.coefficients.counting | ({0} if self.report else set())


@dataclass(frozen=True)
class ServedModel:
    """One model name that requests can use, with its settings.

    Attributes:
        id: The name for a request's ``model`` field.
        kind: The family itself, one of its aliases, or a single member.
        weights: The weights that apply when a request gives none; empty for a member.
        scale: The scale that applies when a request gives none; 1 for a member.
        amplify: The factor on the up-scaling delta that applies when a request gives none; 1 for a member.
        filter: The filter that applies when a request gives none.
        description: The operator's description.
        bounds: The bounds on a request, ``{"weights": {expert: range}, "scale": range, "amplify": range,
            "coefficients": range or None, "total": number}`` with ``range = {"min", "max"}``; None for a
            member, which takes no weights.
    """

    id: str
    kind: Literal["composite", "alias", "member"]
    weights: dict[str, float]
    scale: float
    amplify: float
    filter: Filter | None
    description: str
    bounds: dict[str, Any] | None


class Behaviours:
    """The behaviours that a family serves."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._settings = {config.name: config.defaults, **config.aliases}
        self._members = {f"{config.name}/{member}": member for member in config.family.names}

    def resolve(
        self,
        model: str,
        eft: Mapping[str, Any] | None = None,
        xargs: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """Turn a request's model name and its weights into coefficients.

        Args:
            model: The family's name, an alias, or ``family/member`` for a single member. A behaviour may follow the
                first two, as in ``demo:helpful=0.7,harmless=0.3``.
            eft: The JSON value of the field ``eft``: ``{"weights": {expert: number}, "scale": number,
                "amplify": number, "filter": {"kind", "top_p"}}``. Weights replace the model's as a whole: an
                expert that is not named counts as 0. Absent keys take the model's values. Or ``{"coefficients":
                {member: number}}``, beside which only a base filter is allowed. Beside any, and for a member as well,
                ``{"report": true}``.
            xargs: The same without coefficients, in the flat form of ``vllm_xargs``:
                ``{"eft.<expert>": number, "eft.scale": number, …}``.

        Raises:
            UnknownModelError: No such model is served.
            BehaviourError: The weights are malformed, unknown or out of bounds, given in two forms, or given
                for a plain member.
        """
        served, in_name = self._split(model)
        asked = BehaviourRequest.read_flat(xargs) if xargs else None
        if eft is not None:
            if asked is not None:
                raise BehaviourError("give weights either in eft or in vllm_xargs, not in both", "eft")
            asked = BehaviourRequest.read(eft)
        report = bool(asked and asked.report)
        if served in self._members:
            if (asked is not None and asked.is_behaviour) or in_name is not None:
                message = (
                    f"{shown(served)} is a single member and takes no weights; use {self._config.name!r}"
                )
                raise BehaviourError(message, asked.place if asked else model_name.PLACE)
            return replace(self._plain(served), report=report)
        if in_name is not None:
            if asked is not None and asked.model_fields_set and asked.is_behaviour:
                message = f"give weights either in {asked.place} or in the model's name, not in both"
                raise BehaviourError(message, asked.place)
            asked = BehaviourRequest.read_name(in_name)
        asked = asked or BehaviourRequest()
        if asked.coefficients is not None:
            return replace(self._combination(served, asked, asked.coefficients), report=report)
        resolved = replace(self._composite(served, asked), report=report)
        return resolved if in_name is None else self._named(resolved)

    def served_models(self) -> list[ServedModel]:
        """Every name that ``resolve`` accepts without weights: the family first, then its aliases, then its members."""
        config = self._config
        served = [self._served_setting(config.name, "composite", config.defaults, config.description)]
        for name, alias in config.aliases.items():
            served.append(self._served_setting(name, "alias", alias, alias.description))
        for model, member in self._members.items():
            description = config.family[member].description
            served.append(ServedModel(model, "member", {}, 1.0, 1.0, None, description, None))
        return served

    def served_model(self, name: str) -> ServedModel:
        """One name that ``resolve`` accepts; the settings of one with weights are those that it asks for.

        Raises:
            UnknownModelError: As for ``resolve``.
            BehaviourError: As for ``resolve``.
        """
        resolved = self.resolve(name)
        [served] = [model for model in self.served_models() if model.id == resolved.served]
        if resolved.model == served.id:
            return served
        own = {key: getattr(resolved, key) for key in ("weights", "scale", "amplify", "filter")}
        return replace(served, id=resolved.model, **own)

    def _split(self, model: str) -> tuple[str, str | None]:
        """The served model that a name begins with, and the text of the behaviour in it."""
        served, in_name = model_name.split(model) if isinstance(model, str) else (model, None)
        if not isinstance(served, str) or not (served in self._settings or served in self._members):
            raise UnknownModelError(
                f"{shown(served)} is not served; known: {self._known_models()}", model_name.PLACE
            )
        if len(model) > model_name.MAX_CHARS:
            message = f"a name of {len(model)} characters is too long; allowed: up to {model_name.MAX_CHARS}"
            raise BehaviourError(message, model_name.PLACE)
        return served, in_name

    def _named(self, resolved: Resolved) -> Resolved:
        keys = ("weights", "scale", "amplify", "filter")
        asked = Setting(**{key: getattr(resolved, key) for key in keys})
        own = self._settings[resolved.served]
        return replace(resolved, model=model_name.canonical(resolved.served, own, asked))

    def _served_setting(
        self, model: str, kind: Literal["composite", "alias"], setting: Setting, description: str
    ) -> ServedModel:
        own = (dict(setting.weights), setting.scale, setting.amplify, setting.filter)
        return ServedModel(model, kind, *own, description, self._bounds())

    def _bounds(self) -> dict[str, Any]:
        limits = self._config.limits
        weights = {expert: limits.of(expert).model_dump() for expert in self._config.experts}
        return {
            "weights": weights,
            "scale": limits.scale.model_dump(),
            "amplify": limits.amplify.model_dump(),
            "coefficients": limits.coefficients.model_dump() if limits.coefficients else None,
            "total": limits.total,
        }

    def _known_models(self) -> str:
        return ", ".join([*self._settings, *self._members])

    def _plain(self, model: str) -> Resolved:
        coefficients = alone(self._config, self._members[model])
        return Resolved(model, model, {}, 1.0, 1.0, None, coefficients, plain=True)

    def _composite(self, model: str, asked: BehaviourRequest) -> Resolved:
        setting = self._settings[model]
        weights = dict(setting.weights) if asked.weights is None else self._weights(asked, asked.weights)
        scale = setting.scale if asked.scale is None else asked.scale
        amplify = setting.amplify if asked.amplify is None else asked.amplify
        keep = setting.filter if asked.filter is None else asked.filter
        for key, message in self._config.limits.violations(weights, scale, amplify):
            raise BehaviourError(message, asked.param(*key))
        if problem := self._config.without_up_scaling(weights, amplify, keep):
            raise BehaviourError(problem[1], asked.param(problem[0]))
        weights = {name: float(weight) for name, weight in weights.items()}
        coefficients = mix(self._config, weights, float(scale), float(amplify), keep)
        return Resolved(
            model, model, weights, float(scale), float(amplify), coefficients.filter, coefficients
        )

    def _weights(self, asked: BehaviourRequest, weights: Mapping[str, float]) -> dict[str, float]:
        experts = self._config.experts
        for name in weights:
            if name not in experts:
                message = f"unknown expert {shown(name)}; known: {', '.join(experts)}"
                raise BehaviourError(message, asked.param("weights", name))
        return {name: weights.get(name, 0.0) for name in experts}

    def _combination(
        self, model: str, asked: BehaviourRequest, coefficients: Mapping[str, float]
    ) -> Resolved:
        """The request's linear combination of members, for research."""
        allowed = self._config.limits.coefficients
        if allowed is None:
            message = "the operator allows none; use weights (or set limits.coefficients in the family file)"
            raise BehaviourError(message, asked.param("coefficients"))
        for key in ("weights", "scale", "amplify"):
            if getattr(asked, key) is not None:
                raise BehaviourError("cannot be combined with coefficients", asked.param(key))
        keep = asked.filter
        if keep is not None and keep.kind == "expert" and keep.top_p < 1:
            message = "an expert filter needs weights; with coefficients, the kind can only be base"
            raise BehaviourError(message, asked.param("filter"))
        values = self._checked_coefficients(asked, coefficients, allowed)
        keep = keep if keep is not None and keep.top_p < 1 else None
        combined = Coefficients(values, (0.0,) * len(values), keep)
        return Resolved(
            model,
            model,
            {},
            1.0,
            1.0,
            keep,
            combined,
            own_coefficients=dict(zip(self._config.family.names, values, strict=True)),
        )

    def _checked_coefficients(
        self, asked: BehaviourRequest, coefficients: Mapping[str, float], allowed: Range
    ) -> tuple[float, ...]:
        members = self._config.family.names
        for name, value in coefficients.items():
            param = asked.param("coefficients", name)
            if name not in members:
                raise BehaviourError(f"unknown member {shown(name)}; known: {', '.join(members)}", param)
            if not allowed.min <= value <= allowed.max:
                message = f"{shown(value)} is out of bounds; allowed: {allowed.min:g} to {allowed.max:g}"
                raise BehaviourError(message, param)
        values = tuple(float32(float(coefficients.get(member, 0.0))) for member in members)
        if not any(values):
            raise BehaviourError("at least one must not be 0", asked.param("coefficients"))
        return values
