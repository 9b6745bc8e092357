"""The kinds of texts: what is followed for every prompt.

Source: Ren & Sutherland, arXiv 2407.10490, section 4 and appendix D, who call them probing responses.
"""

from dataclasses import dataclass

__all__ = ["CHOSEN", "KINDS", "REJECTED", "Kind", "kind_named"]


@dataclass(frozen=True)
class Kind:
    """One kind of text.

    Attributes:
        name: in files.
        label: in figures and tables.
        meaning: what it is, in a line.
        untaught: whether training gives no reason to prefer or to avoid it, so that its fall is a sign of squeezing.
    """

    name: str
    label: str
    meaning: str
    untaught: bool = False


CHOSEN = Kind("chosen", "chosen", "the preferred answer")
REJECTED = Kind("rejected", "rejected", "the other answer")

KINDS = (
    CHOSEN,
    Kind("chosen_rephrased", "chosen, rephrased", "the preferred answer in other words"),
    REJECTED,
    Kind("rejected_rephrased", "rejected, rephrased", "the other answer in other words"),
    Kind("initial", "reference’s own", "what the reference itself answers", True),
    Kind("other_trained", "other prompt’s, trained", "the chosen answer to another training prompt", True),
    Kind("other_held_out", "other prompt’s, held out", "the chosen answer to another held-out prompt", True),
    Kind("permuted", "chosen, permuted", "the tokens of the chosen answer in random order", True),
    Kind("random", "random tokens", "as many tokens, drawn from all that occur in the answers", True),
)

_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> Kind:
    """The kind of this name."""
    return _BY_NAME[name]
