"""Scoring: the log-probabilities of given tokens under several vectors at once, from one pass over their text.

A request to be scored is an ordinary one for a single token, whose prompt is the text without its last token (with it,
if activations are asked for: members have to read it then, though its row scores nothing). One
prefill computes the hidden states of all members, and each further vector costs a blend but no forward pass. The scored
rows begin with the prompt's last, so everything before them may come from the prefix cache.

Shape suffixes: C scored tokens, R rows of a chunk, K vectors, L the leading ones of these, N likely tokens, W numbers
of a vector, T tokens of a step, V vocabulary, X columns of `attach`.
"""

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors

from eft_server.engine.message import STATISTICS, Scoring
from eft_server.engine.worker.measures.explaining import ROWS_TO_EXPLAIN, RowExplanation
from eft_server.engine.worker.measures.statistics import RowStatistics
from eft_server.engine.worker.rows import RowScores

_ROWS_AT_ONCE = 256
"""The most rows to score at a time; each needs the logits of all members."""

_LOGITS_AT_ONCE = 1 << 27
"""512 MiB, for any vocabulary."""


def scored_at_once(members: int, vocabulary: int) -> int:
    """Number of rows to score at a time."""
    return max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (members * vocabulary)))


def explained_at_once(members: int, vocabulary: int) -> int:
    """Number of rows to explain or to measure at a time, whose distributions are in memory as well."""
    return scored_at_once(members + ROWS_TO_EXPLAIN, vocabulary)


class Scores:
    """The scores of one request so far, chunk by chunk of its prompt."""

    def __init__(self, scoring: Scoring, device: torch.device) -> None:
        self._scoring = scoring
        self._targets_C = async_tensor_h2d(np.array(scoring.targets, dtype=np.int64), device=device)
        # Float by float as `Scoring.shapes` says, and whole numbers beside some of them.
        self._values = {
            name: torch.full(shape, torch.nan, device=device) for name, shape in scoring.shapes.items()
        }
        self._ranks_KC = torch.zeros_like(self._values["chosen"], dtype=torch.int32)
        self._ids = {
            name: torch.zeros_like(values, dtype=torch.int32) for name, values in self._values.items()
        }

    def read(self, model: Any, hidden_TX: torch.Tensor, computed: int) -> bool:
        """Score the rows of a step.

        Args:
            model: the composite.
            hidden_TX: the output of its forward pass for the request's tokens.
            computed: the position of the first of them.

        Returns:
            Whether the whole text has been read, and so all rows have been scored.
        """
        first, stop, length = self._scoring.first, self._scoring.stop, self._scoring.length
        end = min(computed + len(hidden_TX), stop)
        written = self._scoring.explaining is not None or self._scoring.statistics
        count = explained_at_once if written else scored_at_once
        at_once = count(len(model.names), model.vocabulary)
        for start in range(max(computed, first), end, at_once):
            last = min(start + at_once, end)
            self._score(
                model, hidden_TX[start - computed : last - computed], slice(start - first, last - first)
            )
        return computed < length <= computed + len(hidden_TX)

    def _score(self, model: Any, hidden_RX: torch.Tensor, places: slice) -> None:
        vectors, targets_R = self._scoring.vectors, self._targets_C[places]
        if self._scoring.explaining is not None:
            explained = model.explain(hidden_RX, vectors, targets_R, self._scoring.explaining)
            if explained is not None:  # None off the first rank.
                self._keep_explained(explained, places)
            return
        if self._scoring.statistics:
            if (measured := model.measure(hidden_RX, vectors, targets_R)) is not None:
                scores, statistics = measured
                self._keep_measured(scores, statistics, places)
            return
        scores = model.score(hidden_RX, vectors, targets_R)
        if scores is not None:
            self._keep(scores, places)

    def _keep(self, scores: RowScores, places: slice) -> None:
        self._values["chosen"][:, places] = scores.chosen
        self._values["likeliest"][:, places] = scores.likeliest
        self._ranks_KC[:, places] = scores.ranks

    def _keep_measured(self, scores: RowScores, statistics: RowStatistics, places: slice) -> None:
        self._keep(scores, places)
        for name, values_KR in zip(STATISTICS, statistics.all, strict=True):
            self._values[name][:, places] = values_KR

    def _keep_explained(self, explained: RowExplanation, places: slice) -> None:
        self._keep(explained.scores, places)
        self._ids["likeliest"][:, places] = explained.likeliest_KR
        self._ids["likely"][0, places] = explained.ids_RN
        self._values["likely"][:, places] = explained.logprobs_LRN
        self._values["entropy"][places] = explained.entropy_R
        self._values["divergence"][places] = explained.divergence_R
        for name, values in (("filter", explained.filter_RN1), ("sampled", explained.sampled_RN1)):
            if values is not None:
                self._values[name][places] = values

    def tensors(self) -> LogprobsTensors:
        """All scores, in the form of a prompt's log-probabilities in vLLM: one column with the numbers one by one.

        The order is that of `Scoring.shapes`. The targets' ranks (1 = most likely) are beside `chosen`, the ids of the
        most likely tokens beside `likeliest` and the first of `likely`.
        """
        values = torch.cat([values.flatten() for values in self._values.values()])
        ids = torch.cat([ids.flatten() for ids in self._ids.values()])
        ranks = torch.ones_like(ids)
        ranks[: self._ranks_KC.numel()] = self._ranks_KC.flatten()
        return LogprobsTensors(ids.unsqueeze(-1), values.unsqueeze(-1), ranks)
