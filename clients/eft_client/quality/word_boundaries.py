"""Words in any script: where white space does not part them, Unicode does; what takes no room is in none."""

import regex  # type: ignore[import-untyped]

__all__ = ["separated", "visible"]

_UNSEEN = regex.compile(r"[\p{Cf}\p{Me}\p{Variation_Selector}]+")

_UNPARTED = regex.compile(
    r"[\p{Script=Katakana}ー]+"
    r"|(?=[\p{Script=Han}\p{Script=Hiragana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}])\X"
)


def visible(text: str) -> str:
    """A text without what takes no room in it: zero-width spaces and joiners, soft hyphens, marks and selectors."""
    return str(_UNSEEN.sub("", text))


def separated(text: str) -> str:
    """A text with spaces around the words of scripts that are written without.

    By the default word boundaries of Unicode (UAX #29), which need no dictionary: a run of katakana is a word, and so
    is each character, with its marks, of Chinese, of hiragana, and of Thai, Lao, Khmer and Burmese.
    """
    return str(_UNPARTED.sub(r" \g<0> ", text))
