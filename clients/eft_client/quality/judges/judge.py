"""The interface of judges of single answers, and custom judges named on the command line."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eft_client.quality.answers import Answer
from eft_client.quality.errors import StudyError
from eft_client.quality.metrics import Metric
from eft_client.quality.prompts import Prompt

__all__ = ["AnswerJudge", "OwnJudge", "load_own_judge"]


class AnswerJudge(Protocol):
    """Judges one answer at a time, for nothing: no request, no state."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What `judge` may return."""

    def judge(self, prompt: Prompt, answer: Answer) -> Mapping[str, float]:
        """The value of each metric that counts this prompt; what is left out does not count it."""


@dataclass(frozen=True)
class OwnJudge:
    """A function of the user's: (prompt, answer) to a number, None (not counted), or a mapping of name to number.

    Its metrics are called as the function is, or `function.name` where it returns a mapping, whose names the
    function's attribute `metrics` lists.
    """

    function: Callable[[Prompt, Answer], Any]
    name: str

    @property
    def metrics(self) -> Sequence[Metric]:
        """One for each name that the function lists, or one that is called as the function is."""
        names = [f"{self.name}.{part}" for part in getattr(self.function, "metrics", ())] or [self.name]
        meaning = (self.function.__doc__ or "a custom judge").strip().splitlines()[0]
        return [Metric(name=name, meaning=meaning, counts="as it says itself") for name in names]

    def judge(self, prompt: Prompt, answer: Answer) -> Mapping[str, float]:
        """Call the function.

        Raises:
            StudyError: It returned something else.
        """
        found = self.function(prompt, answer)
        if not isinstance(found, Mapping):
            found = {"": found}
        named = {f"{self.name}.{key}" if key else self.name: value for key, value in found.items()}
        known = {metric.name for metric in self.metrics}
        for key, value in named.items():
            if key not in known or not (value is None or isinstance(value, int | float)):
                raise StudyError(
                    f"judge {self.name}: returned {value!r} for {key!r}; known: {', '.join(known)}"
                )
        return {key: float(value) for key, value in named.items() if value is not None}


def load_own_judge(text: str) -> OwnJudge:
    """A judge from `FILE.py:function` or `module:function`.

    Raises:
        StudyError: There is no such file, module or function.
    """
    place, found, name = text.rpartition(":")
    if not found or not place or not name.isidentifier():
        raise StudyError(f"judge {text!r}: expected FILE.py:function or module:function")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise StudyError(f"judge {text!r}: {place} has no function {name!r}")
    return OwnJudge(function, name)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise StudyError(f"judge: no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StudyError(f"judge: {error}") from None
