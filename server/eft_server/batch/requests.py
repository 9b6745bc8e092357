"""The input of a batch: OpenAI's format, one request a line, and what the command line adds to each."""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_client import weights
from eft_client.text import decoded
from eft_server.api.edge.strict_json import MalformedError, parse_object
from eft_server.api.routes import chat, completions, explanations, responses, scores
from eft_server.behaviour.resolve import Behaviours
from eft_server.errors import BatchError, BehaviourError, ConfigError, shown
from eft_server.family.file import ServerConfig

__all__ = ["BatchRequest", "Defaults", "RequestFile", "parse_weights"]

URLS = (chat.PATH, completions.PATH, responses.PATH, scores.PATH, explanations.PATH)
MAX_ID_CHARACTERS = 512
_KEYS = ("custom_id", "method", "url", "body")
_ENVELOPE_BYTES = 64 * 1024
"""What a line may hold beside its body, which the server's own limit bounds."""


@dataclass(frozen=True)
class BatchRequest:
    """One line: the caller's name for it, the endpoint, and the request's body as written."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Defaults:
    """What the command line says about behaviour, for bodies that say nothing of it.

    Attributes:
        family: The family's name.
        model: The model of bodies that name none; None leaves them the family.
        eft: The weights and the scale, as in a body; None leaves bodies the model's own.
    """

    family: str
    model: str | None = None
    eft: Mapping[str, Any] | None = None

    @classmethod
    def checked(
        cls, config: ServerConfig, model: str | None, weights: Mapping[str, float] | None, scale: float | None
    ) -> "Defaults":
        """What the options say, within the family's bounds.

        Raises:
            ConfigError: The model is not served, or the weights are not allowed.
        """
        eft = {key: value for key, value in (("weights", weights), ("scale", scale)) if value is not None}
        try:
            resolved = Behaviours(config).resolve(config.name if model is None else model, eft or None)
        except BehaviourError as error:
            raise ConfigError(f"the command line's {error.param}: {error}") from None
        return cls(config.name, None if model is None else resolved.model, eft or None)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with what it leaves to the command line.

        The model goes to bodies without `model`. Weights and scale go, as a whole, to bodies that have neither
        `eft` nor `vllm_xargs` and name no model but the family: an alias or a member is a behaviour, too.
        """
        said = any(body.get(key) is not None for key in ("eft", "vllm_xargs"))
        named = body.get("model") not in (None, self.family)
        added: dict[str, Any] = {}
        if self.model is not None and body.get("model") is None:
            added["model"] = self.model
        if self.eft is not None and not said and not named:
            added["eft"] = dict(self.eft)
        return {**body, **added}


class RequestFile:
    """A file of requests, read a line at a time: its size does not matter. Blank lines are skipped."""

    def __init__(self, path: Path, max_body_bytes: int) -> None:
        self.path = path
        self._max_line_bytes = max_body_bytes + _ENVELOPE_BYTES

    def custom_ids(self) -> set[str]:
        """Read the whole file once, check every line but its body, and return the names.

        Raises:
            BatchError: A line is no request, or a custom_id comes twice.
        """
        seen: set[str] = set()
        for number, request in self._numbered():
            if request.custom_id in seen:
                raise BatchError(
                    f"{self.path}:{number}: custom_id {shown(request.custom_id)} is already taken"
                )
            seen.add(request.custom_id)
        return seen

    def __iter__(self) -> Iterator[BatchRequest]:
        return (request for _, request in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, BatchRequest]]:
        if not self.path.is_file():
            raise BatchError(f"{self.path}: there is no such file")
        try:
            with self.path.open("rb") as file:
                lines = iter(lambda: file.readline(self._max_line_bytes + 1), b"")
                for number, line in enumerate(lines, start=1):
                    text = line.removeprefix(BOM_UTF8)
                    if text.strip() or len(line) > self._max_line_bytes:
                        yield number, self._request(number, text)
        except OSError as error:
            raise BatchError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _request(self, number: int, line: bytes) -> BatchRequest:
        try:
            if len(line) > self._max_line_bytes:
                raise BatchError(f"is longer than {self._max_line_bytes} bytes (see server.max_body_bytes)")
            return _read(line)
        except BatchError as error:
            raise BatchError(f"{self.path}:{number}: {error}") from None


def _read(line: bytes) -> BatchRequest:
    try:
        given = parse_object(decoded(line).encode())
    except MalformedError as error:
        raise BatchError(f"is not a JSON object of a request: {error.problem}") from None
    except ValueError as error:
        raise BatchError(f"is not a JSON object of a request: {error}") from None
    for key in given:
        if key not in _KEYS:
            raise BatchError(f"unknown key {shown(key)}; known: {', '.join(_KEYS)}")
    _check(given, "custom_id", _is_name, f"a text of 1 to {MAX_ID_CHARACTERS} characters")
    _check(given, "method", lambda value: value == "POST", "'POST'")
    _check(given, "url", lambda value: value in URLS, "one of " + ", ".join(map(repr, URLS)))
    _check(given, "body", lambda value: isinstance(value, dict), "an object, the request")
    return BatchRequest(given["custom_id"], given["url"], given["body"])


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS


def _check(given: Mapping[str, Any], key: str, is_right: Callable[[Any], bool], right: str) -> None:
    if key not in given:
        raise BatchError(f"{key} is missing; it has to be {right}")
    if not is_right(given[key]):
        raise BatchError(f"{key} has to be {right}, not {shown(given[key])}")


def parse_weights(text: str) -> dict[str, float]:
    """What the option `--weights` says, such as ``helpful=0.7,harmless=0.3``.

    Raises:
        BatchError: The text is of another form.
    """
    try:
        return weights.parse_weights(text)
    except weights.SettingError as error:
        raise BatchError(f"--weights {error}") from None
