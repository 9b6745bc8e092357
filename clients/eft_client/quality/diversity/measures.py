"""The three measures of diversity as a study uses them: per input, across inputs, and what to prepare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.answers import Answers
from eft_client.quality.diversity.ead import VOCABULARY, ead, ead_values
from eft_client.quality.diversity.embeddings import Embedder, cosine_diversity, cosine_values
from eft_client.quality.diversity.nli import CrossEncoder, draw_pairs, nli_diversity, nli_values
from eft_client.quality.errors import StudyError
from eft_client.quality.metrics import Metric
from eft_client.quality.prompts import Prompt

__all__ = ["Begin", "DiversityMeasure", "load_measure", "measure_diversity"]

#: Called with the number of steps; returns what to call after some of them.
Begin = Callable[[int], Callable[[int], object]]


class DiversityMeasure(Protocol):
    """A diversity of a set of texts."""

    @property
    def name(self) -> str:
        """What its metrics' names begin with."""

    @property
    def meaning(self) -> str:
        """What it is, in a line."""

    def prepare(self, sets: Sequence[Sequence[str]], begin: Begin) -> None:
        """Do what costs time, for all the sets that are going to be asked about."""

    def of_samples(self, texts: Sequence[str]) -> float:
        """The diversity of the samples for one input."""

    def of_inputs(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """A value for each text, whose mean is the diversity of all of them."""


@dataclass(frozen=True)
class Ead:
    """Expectation-adjusted distinct n-grams."""

    vocabulary: int = VOCABULARY
    name: str = "ead"

    @property
    def meaning(self) -> str:
        """With the vocabulary that it assumes."""
        return f"expectation-adjusted distinct n-grams, n = 1 to 5, words, vocabulary size V = {self.vocabulary:,}"

    def prepare(self, sets: Sequence[Sequence[str]], begin: Begin) -> None:
        """Nothing to do."""

    def of_samples(self, texts: Sequence[str]) -> float:
        """EAD of all texts together."""
        return ead(texts, vocabulary=self.vocabulary)

    def of_inputs(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The jackknife's values of it."""
        return ead_values(texts, vocabulary=self.vocabulary)


@dataclass(frozen=True)
class Embeddings:
    """One less the mean cosine similarity."""

    embedder: Embedder
    name: str = "embeddings"
    meaning: str = "1 − mean cosine similarity of sentence embeddings over pairs"

    def prepare(self, sets: Sequence[Sequence[str]], begin: Begin) -> None:
        """Embed every text."""
        texts = sorted({text for one in sets for text in one})
        self.embedder.prepare(texts, begin(len(texts)))

    def of_samples(self, texts: Sequence[str]) -> float:
        """Over all pairs."""
        return cosine_diversity(self.embedder(texts))

    def of_inputs(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The jackknife's values of it."""
        return cosine_values(self.embedder(texts))


@dataclass(frozen=True)
class Nli:
    """Contradiction rather than entailment."""

    judge: CrossEncoder
    samples_pairs: int = 28
    inputs_pairs: int = 1000
    name: str = "nli"
    meaning: str = "contradiction (+1) rather than entailment (−1) between pairs, both directions"

    def prepare(self, sets: Sequence[Sequence[str]], begin: Begin) -> None:
        """Judge the pairs of sets of samples; across inputs there is another draw for each set, judged when asked."""
        pairs = {
            pair
            for texts in sets
            for i, j in draw_pairs(len(texts), self.samples_pairs, 0).tolist()
            for pair in ((texts[i], texts[j]), (texts[j], texts[i]))
        }
        self.judge.prepare(sorted(pairs), begin(len(pairs)))

    def of_samples(self, texts: Sequence[str]) -> float:
        """Over all pairs, or a seeded sample of them."""
        return nli_diversity(texts, self.judge, most=self.samples_pairs)

    def of_inputs(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The jackknife's values of it."""
        return nli_values(texts, self.judge, most=self.inputs_pairs)


def load_measure(text: str, *, vocabulary: int = VOCABULARY) -> DiversityMeasure:
    """A measure from its name: `ead`, `embeddings`, `embeddings:FOLDER` or `nli:FOLDER`.

    Raises:
        StudyError: There is none of that name, or what it needs is missing.
    """
    name, _, folder = text.partition(":")
    if name == "ead" and not folder:
        return Ead(vocabulary)
    if name == "embeddings":
        return Embeddings(Embedder(Path(folder) if folder else None))
    if name == "nli" and folder:
        return Nli(CrossEncoder(Path(folder)))
    raise StudyError(f"diversity {text!r}: expected ead, embeddings, embeddings:FOLDER or nli:FOLDER")


def metrics_of(measure: DiversityMeasure) -> tuple[Metric, Metric]:
    """A measure's two metrics: per input, and across inputs."""
    return (
        Metric(
            name=f"{measure.name}.per_input",
            meaning=f"{measure.meaning}; of one prompt's samples, mean over prompts",
            counts="all prompts, where there are two samples or more",
        ),
        Metric(
            name=f"{measure.name}.across",
            meaning=f"{measure.meaning}; of the first samples of all prompts",
            counts="all prompts",
            of_a_set=True,
        ),
    )


def measure_diversity(
    measure: DiversityMeasure,
    answers: Answers,
    settings: Sequence[str],
    prompts: Sequence[Prompt],
    begin: Begin = lambda _: lambda _: None,
) -> Mapping[str, NDArray[np.float64]]:
    """Both metrics as arrays [settings, prompts]."""
    per_input, across = metrics_of(measure)
    sets = [[one.text for one in answers[name, prompt.id]] for name in settings for prompt in prompts]
    measure.prepare(sets, begin)
    samples = [measure.of_samples(texts) if len(texts) > 1 else np.nan for texts in sets]
    shape = (len(settings), len(prompts))
    return {
        per_input.name: np.array(samples, dtype=np.float64).reshape(shape),
        across.name: measure_across(measure, answers, settings, prompts),
    }


def measure_across(
    measure: DiversityMeasure, answers: Answers, settings: Sequence[str], prompts: Sequence[Prompt]
) -> NDArray[np.float64]:
    """Diversity across these prompts by their first samples: [settings, prompts]; NaN for fewer than three."""
    if len(prompts) < 3:
        return np.full((len(settings), len(prompts)), np.nan)
    firsts = [[answers[name, prompt.id][0].text for prompt in prompts] for name in settings]
    return np.stack([measure.of_inputs(texts) for texts in firsts])
