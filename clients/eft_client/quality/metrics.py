"""The metrics of a study: stable names, which direction is better, and the prompts that each is taken over."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_client.quality.errors import StudyError
from eft_client.quality.prompts import Prompt

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["Metric", "Scores", "find_metric"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of every prompt, and what it means.

    Attributes:
        name: as in tables, files and `--metric`.
        meaning: what it is, in a line.
        counts: the prompts that it counts over, in words.
        higher_is_better: its direction; a diversity is "better" when higher only in this sense.
        share: whether it is a share, between 0 and 1.
        of_a_set: it belongs to all prompts together, and the values of single prompts only say how sure it is.
    """

    name: str
    meaning: str
    counts: str
    higher_is_better: bool = True
    share: bool = False
    of_a_set: bool = False

    @property
    def sign(self) -> int:
        """+1 where higher is better, else −1."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The value of every metric for every setting and prompt.

    Attributes:
        metrics: in the order of the tables.
        settings: names, in the order given.
        prompts: in the order asked.
        values: by metric's name, an array of [settings, prompts]; NaN where the metric does not count the prompt.
    """

    metrics: Sequence[Metric]
    settings: Sequence[str]
    prompts: Sequence[Prompt]
    values: Mapping[str, "ndarray"]

    def row(self, setting: str) -> int:
        """Where a setting stands in `values`.

        Raises:
            StudyError: There is none of that name.
        """
        if setting not in self.settings:
            raise StudyError(f"no setting is called {setting!r}; known: {', '.join(self.settings)}")
        return list(self.settings).index(setting)


def find_metric(metrics: Iterable[Metric], name: str) -> Metric:
    """The metric of that name.

    Raises:
        StudyError: Nothing measures it.
    """
    known = {metric.name: metric for metric in metrics}
    if name not in known:
        raise StudyError(f"nothing measures {name!r}; measured: {', '.join(known)}")
    return known[name]
