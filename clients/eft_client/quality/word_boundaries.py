"""Word boundaries in any script: at white space, else by Unicode's rules; characters without width are left out."""

import regex  # type: ignore[import-untyped]

__all__ = ["separated", "visible"]

_INVISIBLE = regex.compile(r"[\p{Cf}\p{Me}\p{Variation_Selector}]+")

_UNSEPARATED = regex.compile(
    r"[\p{Script=Katakana}ー]+"
    r"|(?=[\p{Script=Han}\p{Script=Hiragana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}])\X"
)


def visible(text: str) -> str:
    """A text without its characters of no width: zero-width spaces and joiners, soft hyphens, marks, selectors."""
    return str(_INVISIBLE.sub("", text))


def separated(text: str) -> str:
    """A text with spaces around the words of scripts that are written without.

    By the default word boundaries of Unicode (UAX #29), which need no dictionary: a run of katakana is a word, and so
    is each character, with its marks, of Chinese, of hiragana, and of Thai, Lao, Khmer and Burmese.
    """
    return str(_UNSEPARATED.sub(r" \g<0> ", text))
