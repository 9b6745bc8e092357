"""Problems and the features of their rows, from what was collected: activations, codes, tokens.

Shape suffixes: R rows, H hidden, V different tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.probe.errors import ProbeError
from eft_client.probe.examples import TARGETS, Examples
from eft_client.probe.statistics.problem import Problem, TargetKind
from eft_client.probe.store import Read, Store

__all__ = ["PosedRows", "features_of", "posed", "token_counts", "token_rows"]

Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PosedRows:
    """A problem, and what each of its rows is made of.

    Attributes:
        problem: what is to be said of the rows.
        texts_R: the text of each row; of a pair, the chosen one.
        minus_R: of a pair, the rejected text.
        tokens_R: of a single token, its place among those of the text that have a row.
        left_out: rows whose target is not a finite number.
        reads: what is known of each text.
    """

    problem: Problem
    texts_R: Places
    minus_R: Places | None = None
    tokens_R: Places | None = None
    left_out: int = 0
    reads: Sequence[Read] = field(repr=False)


def posed(examples: Examples, store: Store, target: str, weight: float | None = None) -> PosedRows:
    """The problem of a target.

    Args:
        examples: The data.
        store: What was collected, for all of its texts.
        target: One of TARGETS.
        weight: Of a reward, the composite's at this weight of the expert, less the base; None for the expert's own.

    Raises:
        ProbeError: No row is left, or all targets are the same.
    """
    reads = [store.read(text.key) for text in examples.texts]
    if target == "preference":
        rows = _preferences(examples, reads)
    elif target == "label":
        rows = _labels(examples, reads)
    else:
        rows = _rewards(examples, reads, target, weight)
    if not rows.problem.rows:
        raise ProbeError(f"{target}: no row has a finite number")
    if rows.problem.kind is not TargetKind.PAIR and len(np.unique(rows.problem.targets_R)) < 2:
        raise ProbeError(
            f"{target}: every row has {rows.problem.targets_R[0]:g}; there is nothing to predict"
        )
    return rows


def _preferences(examples: Examples, reads: Sequence[Read]) -> PosedRows:
    pairs = [(one.chosen, one.rejected) for one in examples.examples if one.rejected is not None]
    chosen, rejected = np.array(pairs, dtype=np.int64).T
    problem = _problem(examples, "preference", TargetKind.PAIR, np.ones(len(pairs)), chosen)
    return PosedRows(problem=problem, texts_R=chosen, minus_R=rejected, reads=reads)


def _labels(examples: Examples, reads: Sequence[Read]) -> PosedRows:
    texts = np.array([example.chosen for example in examples.examples])
    labels = np.array([example.label for example in examples.examples], dtype=np.float64)
    if set(labels) <= {0.0, 1.0}:
        problem = _problem(examples, "label", TargetKind.CLASS, 2 * labels - 1, texts)
    else:
        problem = _problem(examples, "label", TargetKind.NUMBER, labels, texts)
    return PosedRows(problem=problem, texts_R=texts, reads=reads)


def _rewards(examples: Examples, reads: Sequence[Read], target: str, weight: float | None) -> PosedRows:
    by_text = [np.array(read.rewards if weight is None else read.over[weight]) for read in reads]
    name = target if weight is None else f"{target} of the composite at {weight:g}"
    if TARGETS[target]:
        pairs = [(text, row) for text, read in enumerate(reads) for row in range(len(read.tokens))]
        texts, tokens = np.array(pairs, dtype=np.int64).T
        values = np.concatenate([by_text[i][list(read.tokens)] for i, read in enumerate(reads)])
    else:
        texts, tokens = np.arange(len(reads)), None
        values = np.array([found.sum() for found in by_text])
    finite = np.isfinite(values)
    return PosedRows(
        problem=_problem(examples, name, TargetKind.NUMBER, values[finite], texts[finite]),
        texts_R=texts[finite],
        tokens_R=None if tokens is None else tokens[finite],
        left_out=int((~finite).sum()),
        reads=reads,
    )


def _problem(
    examples: Examples, target: str, kind: TargetKind, targets_R: NDArray[np.float64], texts_R: Places
) -> Problem:
    prompts = np.array([examples.texts[text].prompt for text in texts_R])
    # From 0 on without gaps, also where rows were left out.
    places = np.unique(prompts, return_inverse=True)[1].astype(np.int64)
    return Problem(target=target, kind=kind, targets_R=targets_R, prompts_R=places)


Layered = Callable[[Places], NDArray[np.float64]]
"""What gives rows of a store's arrays at a layer, or of codes made of them."""


def features_of(rows: PosedRows, store: Store, states: Layered) -> NDArray[np.float64]:
    """The features of each row [R, H]: a token's, a text's, or of a pair the chosen text's less the other's.

    Where a store holds tokens and a row is a text, the mean over its tokens.
    """
    per_text = store.wanted.rows
    if rows.tokens_R is not None:
        return states(rows.texts_R * per_text + rows.tokens_R)
    if store.wanted.pool == "none":
        used, places = token_rows(rows.reads, per_text)
        by_token = states(used)
        by_text = np.add.reduceat(by_token, np.searchsorted(places, np.arange(len(rows.reads))))
        by_text /= np.bincount(places)[:, None]
    else:
        by_text = states(np.arange(len(rows.reads)))
    found: NDArray[np.float64] = by_text[rows.texts_R]
    return found if rows.minus_R is None else found - by_text[rows.minus_R]


def token_rows(reads: Sequence[Read], per_text: int) -> tuple[Places, Places]:
    """The rows of a store of tokens that are in use, and the text of each."""
    counts = [len(read.tokens) for read in reads]
    texts = np.repeat(np.arange(len(reads)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    return texts * per_text + within, texts


def token_counts(rows: PosedRows) -> Any:
    """The bag of tokens of each row, a sparse matrix: counts of a completion's ids; for a pair, their difference.

    For a single token: which one it is, beside the counts of those up to it.
    """
    from scipy.sparse import csr_matrix, hstack

    ids = sorted({token for read in rows.reads for token in read.token_ids})
    column = {token: place for place, token in enumerate(ids)}
    bags = [[column[token] for token in read.token_ids] for read in rows.reads]

    def counted(bags_R: Sequence[Sequence[int]]) -> Any:
        lengths = np.cumsum([0, *(len(bag) for bag in bags_R)])
        columns = np.concatenate([np.array(bag, dtype=np.int64) for bag in bags_R])
        matrix = csr_matrix((np.ones(len(columns)), columns, lengths), shape=(len(bags_R), len(ids)))
        matrix.sum_duplicates()
        return matrix

    if rows.tokens_R is None:
        found = counted([bags[text] for text in rows.texts_R])
        return found if rows.minus_R is None else found - counted([bags[text] for text in rows.minus_R])
    places = [
        (text, rows.reads[text].tokens[token])
        for text, token in zip(rows.texts_R, rows.tokens_R, strict=True)
    ]
    this = counted([[bags[text][place]] for text, place in places])
    return hstack([this, counted([bags[text][: place + 1] for text, place in places])], format="csr")
