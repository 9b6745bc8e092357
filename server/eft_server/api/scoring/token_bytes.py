"""Tokens as bytes and as text, for a vocabulary in which one character may be several tokens."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens
from vllm.utils.mistral import is_mistral_tokenizer
from xgrammar import TokenizerInfo, VocabType

__all__ = ["TokenBytes"]


class TokenBytes:
    """What the tokens stand for.

    A tokenizer decodes a token that is part of a character to U+FFFD, and some drop a space at the beginning of what
    they decode; the bytes of tokens, one after the other, are those of the text.

    Args:
        tokenizer: the one that all members share.
        size: the number of ids, with those that no token has.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size

    def of(self, token: int) -> bytes:
        """A token's bytes; none for an id without a token."""
        return self._bytes[token]

    def text(self, token: int) -> str:
        """The same as text, with U+FFFD for bytes that are no whole character."""
        return self._bytes[token].decode(errors="replace")

    def text_of(self, tokens: Iterable[int]) -> str:
        """The text of several tokens."""
        return b"".join(map(self.of, tokens)).decode(errors="replace")

    def prepare(self) -> None:
        """Find all of them now: that takes a second for large vocabularies, and tokenizers are not thread-safe."""
        _ = self._bytes, self.special

    @cached_property
    def special(self) -> frozenset[int]:
        """The tokens that control a model, such as those that end a turn."""
        # Some that have no role by name, such as those around a role in a chat, are only marked where they are added.
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        return frozenset(
            {*self._tokenizer.all_special_ids, *(token for token, about in added.items() if about.special)}
        )

    @cached_property
    def _bytes(self) -> Sequence[bytes]:
        found = _decoded(self._tokenizer, self._size)
        return [*found, *[b""] * (self._size - len(found))]


def _decoded(tokenizer: Any, size: int) -> list[bytes]:
    """Every token's bytes, by the library that also finds them for grammars."""
    ends = [0]  # The library wants some, but they make no difference here.
    if is_mistral_tokenizer(tokenizer):  # As vLLM describes it to that library.
        kind = VocabType.RAW if tokenizer.is_tekken else VocabType.BYTE_FALLBACK
        count = len(tokenizer.vocab)
        return TokenizerInfo(tokenizer.vocab, kind, vocab_size=count, stop_token_ids=ends).decoded_vocab
    try:
        info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=ends)
    except ValueError:  # A tokenizer of a kind that it does not know.
        known = list(range(min(size, len(tokenizer))))
        return [text.encode() for text in convert_ids_list_to_tokens(tokenizer, known)]
    return info.decoded_vocab
