"""Scoring: the log-probabilities of given tokens under several vectors at once, from one pass over their text.

A request to be scored is an ordinary one for a single token, whose prompt is the text without its last token: one
prefill computes the hidden states of all members, and each further vector costs a blend but no forward pass. The scored
rows begin with the prompt's last, so everything before them may come from the prefix cache.

Shape suffixes: C scored tokens, R rows of a chunk, K vectors, W numbers of a vector, T tokens of a step, V
vocabulary, X columns of `attach`.
"""

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors

from eft_server.engine.message import Scoring

_ROWS_AT_ONCE = 256
"""The most rows to score at a time; each needs the logits of all members."""

_LOGITS_AT_ONCE = 1 << 27
"""512 MiB, for any vocabulary."""


def scored_at_once(members: int, vocabulary: int) -> int:
    """Number of rows to score at a time."""
    return max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (members * vocabulary)))


class Scores:
    """The scores of one request so far, chunk by chunk of its prompt."""

    def __init__(self, scoring: Scoring, device: torch.device) -> None:
        self._scoring = scoring
        self._targets_C = async_tensor_h2d(np.array(scoring.targets, dtype=np.int64), device=device)
        shape = (len(scoring.vectors), len(scoring.targets))
        self._chosen_KC = torch.full(shape, torch.nan, device=device)
        self._likeliest_KC = torch.full(shape, torch.nan, device=device)
        self._ranks_KC = torch.zeros(shape, dtype=torch.int32, device=device)

    def read(self, model: Any, hidden_TX: torch.Tensor, computed: int) -> bool:
        """Score the rows of a step.

        Args:
            model: the composite.
            hidden_TX: the output of its forward pass for the request's tokens.
            computed: the position of the first of them.

        Returns:
            Whether all rows have been scored.
        """
        first, stop = self._scoring.first, self._scoring.stop
        end = min(computed + len(hidden_TX), stop)
        at_once = scored_at_once(len(model.names), model.vocabulary)
        for start in range(max(computed, first), end, at_once):
            last = min(start + at_once, end)
            self._score(
                model, hidden_TX[start - computed : last - computed], slice(start - first, last - first)
            )
        return computed < stop <= computed + len(hidden_TX)

    def _score(self, model: Any, hidden_RX: torch.Tensor, places: slice) -> None:
        found = model.score(hidden_RX, self._scoring.vectors, self._targets_C[places])
        if found is not None:  # None off the first rank.
            self._chosen_KC[:, places] = found.chosen
            self._likeliest_KC[:, places] = found.likeliest
            self._ranks_KC[:, places] = found.ranks

    def tensors(self) -> LogprobsTensors:
        """All scores, in the form of a prompt's log-probabilities in vLLM: one column of 2 · K · C rows.

        The targets come first, vector by vector, with their ranks (1 = most likely); the most likely tokens follow in
        the same order.
        """
        values = torch.cat([self._chosen_KC.flatten(), self._likeliest_KC.flatten()])
        ranks = torch.cat([self._ranks_KC.flatten(), torch.ones_like(self._ranks_KC).flatten()])
        ids = torch.zeros_like(ranks).unsqueeze(-1)
        return LogprobsTensors(ids, values.unsqueeze(-1), ranks)
