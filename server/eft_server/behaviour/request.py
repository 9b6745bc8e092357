"""The request field `eft`, its flat form and that in the model's name: one definition to parse, refuse and describe."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from eft_server.behaviour import model_name
from eft_server.errors import BehaviourError, shown
from eft_server.family.file import Filter

__all__ = ["EXAMPLE", "BehaviourRequest", "TextBehaviourRequest"]

EXAMPLE: dict[str, Any] = {"weights": {"helpful": 0.7, "harmless": 0.3}, "scale": 1.0}

_FLAT_PREFIX = "eft."
_NO_FILTER = Filter(kind="expert", top_p=1.0)
_REPORT = frozenset({"report"})


def _number(value: Any) -> float:
    """A finite number, unchanged: a huge integer can still be compared with bounds, but has no float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("float_type", "")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "")
    return value


def _numbers(value: Any) -> dict[Any, float]:
    """An object of numbers; the first value that is none is the problem, since a list of all could be long."""
    if not isinstance(value, Mapping):
        raise PydanticCustomError("dict_type", "")
    for key, item in value.items():
        try:
            _number(item)
        except PydanticCustomError as error:
            raise PydanticCustomError(error.type, "", {"key": key, "value": item}) from None
    return dict(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "")
    return value


# Not run on the default: a field may be absent (None), but not null.
_Factor = Annotated[float | None, PlainValidator(_number), WithJsonSchema({"type": "number"})]
_Flag = Annotated[bool | None, PlainValidator(_flag), WithJsonSchema({"type": "boolean"})]
_Numbers = Annotated[
    dict[Any, float] | None,
    PlainValidator(_numbers),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]


def _describe(schema: dict[str, Any]) -> None:
    """Remove the defaults: an absent field takes the model's setting."""
    schema["examples"] = [EXAMPLE]
    for described in schema["properties"].values():
        described.pop("default", None)


class BehaviourRequest(BaseModel):
    """How much of each expert to apply: base + scale * sum of weight * (expert - its reference)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", json_schema_extra=_describe)

    weights: _Numbers = Field(
        default=None,
        description="A weight for each expert; an expert that is not named counts as 0. Default: the model's weights.",
    )
    scale: _Factor = Field(default=None, description="A factor on all weights. Default: the model's scale.")
    amplify: _Factor = Field(
        default=None,
        description="A factor on the up-scaling delta, base - reference, but not on the experts. Default: the "
        "model's.",
    )
    filter: Filter | None = Field(
        default=None, description="Conservative decoding; null turns it off. Default: the model's filter."
    )
    coefficients: _Numbers = Field(
        default=None,
        description="Any linear combination of the members' logits, if the operator allows it. It replaces all of "
        "the above except a base filter.",
    )
    report: _Flag = Field(
        default=None,
        description="Whether the answer tells what the experts changed, beside the base: the share of generated tokens "
        "at which the likeliest one is another, and the mean KL divergence. Default: false.",
    )
    _place: str = PrivateAttr(default="eft")

    @classmethod
    def read(cls, eft: Any) -> Self:
        """Read the field `eft`. A filter of null means none, even where the model has one.

        Raises:
            BehaviourError: It is not an object, has an unknown key, or has a value of the wrong type.
        """
        return cls._read(eft, "eft")._with_null_as_no_filter()

    @classmethod
    def read_flat(cls, xargs: Any) -> Self:
        """Read the flat form of `vllm_xargs`: eft.<expert>, eft.scale, eft.filter and the like.

        Raises:
            BehaviourError: As for `read`.
        """
        if not isinstance(xargs, Mapping):
            raise BehaviourError(f"must be an object, not {shown(xargs)}", "vllm_xargs")
        weights: dict[str, Any] = {}
        for key, value in xargs.items():
            if not isinstance(key, str) or not key.startswith(_FLAT_PREFIX):
                known = "eft.<expert>, eft.scale, eft.amplify, eft.filter, eft.top_p and eft.report"
                raise BehaviourError(f"unknown key {shown(key)}; known: {known}", _path("vllm_xargs", key))
            weights[key.removeprefix(_FLAT_PREFIX)] = value
        given: dict[str, Any] = {
            key: weights.pop(key) for key in ("scale", "amplify", "report") if key in weights
        }
        kind, top_p = weights.pop("filter", None), weights.pop("top_p", None)
        if kind is not None or top_p is not None:
            given["filter"] = {"kind": kind, "top_p": top_p}
        return cls._read(given | ({"weights": weights} if weights else {}), "vllm_xargs")

    @classmethod
    def read_name(cls, text: str) -> Self:
        """Read what stands behind the colon of a model's name, such as `helpful=0.7,scale=0.5,filter=expert:0.9`.

        Raises:
            BehaviourError: As for `read`; or something is named twice.
        """
        return cls._read(model_name.behaviour_in(text), model_name.PLACE)._with_null_as_no_filter()

    @property
    def is_behaviour(self) -> bool:
        """Whether it says more than whether there is to be a report."""
        return self.model_fields_set != _REPORT

    @property
    def place(self) -> str:
        """The request field that it was read from."""
        return self._place

    def param(self, *key: str) -> str:
        """The request field of a key such as ("weights", "helpful")."""
        return _param(self._place, key)

    @classmethod
    def _read(cls, given: Any, place: str) -> Self:
        try:
            return cls.model_validate(_first_unknown(given, cls))._at(place)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            unknown = (problem for problem in problems if problem["type"] == "extra_forbidden")
            problem = next(unknown, problems[0])
            inside = problem.get("ctx", {})
            if "key" in inside:
                problem["loc"], problem["input"] = (*problem["loc"], inside["key"]), inside["value"]
            raise BehaviourError(_words(problem, cls), _param(place, problem["loc"])) from None

    def _with_null_as_no_filter(self) -> Self:
        has_none = "filter" in self.model_fields_set and self.filter is None
        return self.model_copy(update={"filter": _NO_FILTER}) if has_none else self

    def _at(self, place: str) -> Self:
        self._place = place
        return self


class TextBehaviourRequest(BehaviourRequest):
    """The same, with per-member prompts."""

    prompts: dict[str, str | list[int]] | None = Field(
        default=None, description="Prompts by member; the other members read the request's prompt."
    )


def _first_unknown(given: Any, model: type[BaseModel]) -> Any:
    """Of an object with an unknown key, in itself or in its filter, only that: pydantic would list every one."""
    if not isinstance(given, Mapping):
        return given
    keep = _first_unknown(given.get("filter"), Filter)
    unknown = ({key: value} for key, value in given.items() if key not in model.model_fields)
    return next(unknown, given if keep is given.get("filter") else {"filter": keep})


def _words(problem: ErrorDetails, model: type[BehaviourRequest]) -> str:
    *_, key = ("eft", *problem["loc"])
    value = None if problem["type"] == "missing" else problem["input"]
    keys = Filter.model_fields if "filter" in problem["loc"] else model.model_fields
    match problem["type"]:
        case "extra_forbidden":
            words = f"unknown key {shown(key)}; known: {', '.join(keys)}"
        case "dict_type":
            noun = "member" if key == "coefficients" else "expert"
            words = f"must be an object of numbers by {noun}, not {shown(value)}"
        case "model_type":
            content = "kind and top_p" if key == "filter" else ", ".join(keys)
            words = f"must be an object with {content}, not {shown(value)}"
        case "bool_type":
            words = f"must be true or false, not {shown(value)}"
        case "finite_number":
            words = f"must be a finite number, not {value}"
        case "greater_than_equal" | "less_than_equal":
            words = f"{shown(value)} is out of bounds; allowed: 0 to 1"
        case _ if problem["loc"] == ("filter", "kind"):
            words = f"{shown(value)} is not a kind of filter; known: expert, base"
        case _:
            words = f"must be a number, not {shown(value)}"
    return words


def _param(place: str, key: tuple[Any, ...]) -> str:
    if place == model_name.PLACE:
        return _path(place, *(key[1:] if key[:1] == ("weights",) else key[:1]))
    if place != "vllm_xargs":
        return _path(place, *key)
    flat = {("filter", "kind"): ("filter",), ("filter", "top_p"): ("top_p",)}.get(key, key)
    return _path("vllm_xargs", "eft", *(flat[1:] if flat[:1] == ("weights",) else flat))


def _path(*key: Any) -> str:
    """A dotted request field; a part that would not print well is abbreviated."""
    return ".".join(part if isinstance(part, str) and _is_plain(part) else shown(part) for part in key)


def _is_plain(text: str) -> bool:
    return len(text) <= 64 and text.isprintable()
