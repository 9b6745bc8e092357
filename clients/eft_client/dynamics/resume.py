"""A second run goes on where the first one stopped, if it is of the same study and the same weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.options import DynamicsPlan
from eft_client.dynamics.scores import Scorer
from eft_client.dynamics.texts.text import Place, Text, places
from eft_client.pairs.pair import Pair
from eft_client.pairs.results import TOLERANCE_A_TOKEN
from eft_client.quality.journal import Journal

__all__ = ["require_same_study", "require_same_weights"]

_HEADER = "study"
_WORDS = {"family": "the family", "made": "its file, or its training.json,", "data": "the data"}


def require_same_study(journal: Journal, plan: DynamicsPlan, family: str | None) -> None:
    """Begin the journal with what it is of; before the family is known, only see whether it is of something else.

    Raises:
        DynamicsError: It is of another family or of other data.
    """
    header: dict[str, Any] = {"made": plan.made, "data": dict(plan.digests)}
    if family is not None:
        header["family"] = family
    found = journal.get(_HEADER)
    if found is None:
        if len(journal):
            raise DynamicsError(f"{journal.path}: no file of eft dynamics; give another --output")
        if family is not None:
            journal.append(_HEADER, header)
        return
    for name, value in header.items():
        if found.get(name) != value:
            before, now = (json.dumps(one, ensure_ascii=False)[:160] for one in (found.get(name), value))
            raise DynamicsError(
                f"{journal.path}: {_WORDS[name]} was another: {before}, now {now}; give another --output, or move the "
                "file away"
            )


def require_same_weights(
    scorer: Scorer, pairs: Mapping[str, Sequence[Pair]], texts: Mapping[Place, Sequence[Text]]
) -> None:
    """Score one of the journal's texts anew: it must come out as it did then.

    Raises:
        DynamicsError: It does not.
    """
    for side, index in places(pairs):
        pair, text = pairs[side][index], texts[side, index][0]
        before = scorer.sums(pair, text)
        if not before:
            continue
        for name, sums in scorer.asked_anew(pair, text).items():
            then = before.get(name, sums)
            if abs(then.total - sums.total) > TOLERANCE_A_TOKEN * sums.tokens:
                raise DynamicsError(
                    f"{scorer.journal.path}: {name} gave the {text.kind} answer to prompt {pair.id!r} "
                    f"{then.total:.2f} nats, and gives it {sums.total:.2f} now, so its weights have changed; give "
                    "another --output, or move the file away"
                )
        return
