"""Settings to compare: a server, one of its model names, and the behaviour that a request asks for."""

import math
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from eft_client.errors import WrongArgument
from eft_client.text import read_text
from eft_client.weights import (
    FACTORS,
    SettingError,
    model_and_behaviour,
    number_in,
    parse_behaviour,
    words_by_name,
)

__all__ = ["DEFAULT_URL", "Setting", "SettingError", "api_key_of", "parse_setting", "read_settings", "sweep"]

DEFAULT_URL = "http://127.0.0.1:8000/v1"
MAX_SETTINGS = 200
MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[^\s=@]+")
_SWEPT = "expert=from:to:step, expert=number or expert=1-other, like helpful=0:1:0.1 harmless=1-helpful"
_KEYS = (
    "name",
    "model",
    "url",
    "weights",
    "scale",
    "amplify",
    "filter",
    "coefficients",
    "report",
    "api_key_env",
)


@dataclass(frozen=True)
class Setting:
    """One way of asking: what a benchmark compares.

    Attributes:
        name: what tables and plots call it; unique in a run.
        model: the model name to ask for; None asks for the first that the server lists.
        url: the server's base URL, with its /v1.
        eft: the request's `eft` object; empty sends none, so that any OpenAI-compatible server will do.
        api_key_env: the environment variable that holds the server's key.
        sweep: the coordinates of the point that this is in a sweep, by expert.
    """

    name: str
    model: str | None = None
    url: str = DEFAULT_URL
    eft: Mapping[str, Any] = field(default_factory=dict)
    api_key_env: str | None = None
    sweep: Mapping[str, float] = field(default_factory=dict)

    @property
    def api_key(self) -> str | None:
        """The server's key, from the variable that the setting names, else EFT_API_KEY, else OPENAI_API_KEY.

        Raises:
            SettingError: The variable that it names is not set.
        """
        if self.api_key_env:
            if self.api_key_env not in os.environ:
                raise SettingError(f"{self.name}: the environment has no variable {self.api_key_env}")
            return os.environ[self.api_key_env]
        return os.environ.get("EFT_API_KEY") or os.environ.get("OPENAI_API_KEY")

    @property
    def body(self) -> dict[str, Any]:
        """The fields that this setting adds to a request's body, except `model`."""
        return {"eft": dict(self.eft)} if self.eft else {}


def api_key_of(variable: str | None) -> str | None:
    """The key that an environment variable holds; None leaves it to the client, which looks at its own variables.

    Raises:
        WrongArgument: There is no such variable.
    """
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise WrongArgument(f"--api-key-env: the environment has no variable {variable!r}")
    return os.environ[variable]


def parse_setting(text: str, *, url: str = DEFAULT_URL) -> Setting:
    """Read `NAME=MODEL[@URL] [expert=number …] [scale=…] [amplify=…] [filter=KIND:TOP_P]`.

    `careful=demo helpful=0.3 harmless=0.7`, `base=demo/base`, `tuned=large-helpful@http://127.0.0.1:8001/v1`; without
    `NAME=` the whole text is the name. A model may be one with weights in its name: `careful=demo:harmless=1`.

    Raises:
        SettingError: It has another form, or a number that is not one.
    """
    words = text.split()
    if not words:
        raise SettingError("the setting is empty; expected NAME=MODEL[@URL] [expert=number …]")
    _, in_name = model_and_behaviour(words[0])
    name, found, target = ("", "", words[0]) if in_name else words[0].partition("=")
    model, _, own_url = (target if found else words[0]).partition("@")
    if not in_name and not _NAME.fullmatch(name if found else model):
        raise SettingError(f"{words[0]!r}: expected NAME=MODEL or NAME=MODEL@URL")
    eft = parse_behaviour(" ".join(words[1:]))
    return Setting(
        name=name if found else " ".join([model, *words[1:]]),
        model=model or None,
        url=_url(own_url or url),
        eft=eft,
    )


class _Loader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice; plain YAML would take the last."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(
                problem=f"{twice[0]!r} is named twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_settings(path: Path, *, url: str = DEFAULT_URL) -> list[Setting]:
    """Read a YAML list of settings.

    Each is an object with any of name, model, url, weights, scale, amplify, filter, coefficients, report, api_key_env;
    or text, in the form that `parse_setting` takes.

    Raises:
        SettingError: The file is missing, too large, no such list, or says an unknown thing.
    """
    try:
        content = yaml.load(read_text(path, MAX_FILE_BYTES, SettingError), _Loader)
    except yaml.YAMLError as error:
        raise SettingError(f"{path}: {error}") from None
    if not isinstance(content, list) or not content:
        raise SettingError(f"{path}: must be a YAML list of settings")
    return [
        parse_setting(entry, url=url) if isinstance(entry, str) else _from_object(entry, path, url)
        for entry in content
    ]


def _from_object(entry: Any, path: Path, url: str) -> Setting:
    if not isinstance(entry, Mapping):
        raise SettingError(f"{path}: {entry!r} is no setting; expected an object or NAME=MODEL …")
    for key in entry:
        if key not in _KEYS:
            raise SettingError(f"{path}: unknown key {key!r}; known: {', '.join(_KEYS)}")
    texts = {key: entry[key] for key in ("name", "model", "url", "api_key_env") if entry.get(key) is not None}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise SettingError(f"{path}: {key} must be text, not {value!r}")
    eft = {key: entry[key] for key in _KEYS[3:9] if key in entry}
    name = texts.get("name") or texts.get("model")
    if not name:
        raise SettingError(f"{path}: a setting needs a name or a model: {dict(entry)!r}")
    return Setting(
        name=name,
        model=texts.get("model"),
        url=_url(texts.get("url", url)),
        eft=eft,
        api_key_env=texts.get("api_key_env"),
    )


def sweep(text: str, *, model: str | None = None, url: str = DEFAULT_URL) -> list[Setting]:
    """The settings of a sweep: `helpful=0:1:0.1 harmless=1-helpful`, in the order of its numbers.

    An expert's value is a number, a range `from:to:step` (both ends belong to it), or `1-other`, the rest of another
    expert's to 1. Several ranges make a grid. `scale` and `amplify` may be swept, too.

    Raises:
        SettingError: It has another form, has no range, or makes more than 200 settings.
    """
    terms = {key: _term(key, value, text) for key, value in words_by_name(text, _SWEPT).items()}
    ranges = {key: value for key, value in terms.items() if isinstance(value, list)}
    if not ranges:
        raise SettingError(f"sweep {text!r}: no range; expected helpful=0:1:0.1 harmless=1-helpful")
    if math.prod(len(values) for values in ranges.values()) > MAX_SETTINGS:
        raise SettingError(f"sweep {text!r}: more than {MAX_SETTINGS} settings")
    return [_point(values, terms, text, model, url) for values in _grid(ranges)]


def _grid(ranges: Mapping[str, list[float]]) -> Iterator[dict[str, float]]:
    for values in product(*ranges.values()):
        yield dict(zip(ranges, values, strict=True))


def _point(
    swept: Mapping[str, float], terms: Mapping[str, Any], text: str, model: str | None, url: str
) -> Setting:
    values = {
        key: swept[key] if key in swept else _rest(value, swept, text) if isinstance(value, str) else value
        for key, value in terms.items()
    }
    factors = {key: values[key] for key in FACTORS if key in values}
    weights = {key: value for key, value in values.items() if key not in FACTORS}
    name = " ".join(f"{key}={value:g}" for key, value in values.items())
    eft = ({"weights": weights} if weights else {}) | factors
    return Setting(name=name, model=model, url=_url(url), eft=eft, sweep=dict(swept))


def _term(key: str, value: str, text: str) -> float | list[float] | str:
    if value.startswith("1-"):
        return value[2:]
    if ":" not in value:
        return number_in(key, value)
    numbers = [number_in(key, part) for part in value.split(":")]
    if len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
        raise SettingError(f"sweep {text!r}: {value!r} is not from:to:step with from ≤ to and a step above 0")
    first, last, step = numbers
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > MAX_SETTINGS:
        raise SettingError(f"sweep {text!r}: {value!r} makes more than {MAX_SETTINGS} settings")
    return [round(first + index * step, 9) for index in range(count)]


def _rest(other: str, swept: Mapping[str, float], text: str) -> float:
    if other not in swept:
        raise SettingError(f"sweep {text!r}: 1-{other} needs a range for {other!r}")
    return round(1.0 - swept[other], 9)


def _url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise SettingError(f"{url!r} is no base URL; expected one such as {DEFAULT_URL}")
    return url.rstrip("/")
