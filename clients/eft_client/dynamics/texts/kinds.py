"""The kinds of texts: what is followed for every prompt.

Source: Ren & Sutherland, arXiv 2407.10490, section 4 and appendix D, who call them probing responses.
"""

from dataclasses import dataclass

__all__ = ["ARGMAX", "KINDS", "Kind", "kind_named", "label_of"]


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


ARGMAX = "argmax"
"""What stands beside the kinds and is none: the likeliest token at each place along the chosen answer."""

KINDS = (
    Kind("chosen", "chosen", "the preferred answer"),
    Kind("chosen_rephrased", "chosen, rephrased", "the preferred answer in other words"),
    Kind("rejected", "rejected", "the other answer"),
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


def label_of(name: str) -> str:
    """A kind's label, or the argmax's."""
    return "argmax along chosen" if name == ARGMAX else _BY_NAME[name].label
