"""Tokens as bytes, for the kinds of tokenizers that there are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.random_family import write_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from eft_server.api.scoring.token_bytes import TokenBytes


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["<¦tool▁call¦>"])
    return tokenizer


@pytest.fixture(scope="module")
def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece's are: a word begins with ▁, and what is no word is bytes."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁he", "llo", "é", "▁▁"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_the_bytes_of_a_text_are_its_tokens(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    token_bytes = TokenBytes(byte_level, 400)
    ids = byte_level(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert b"".join(map(token_bytes.of, ids)) == text.encode()
    assert token_bytes.text_of(ids) == text


def test_a_part_of_a_character_is_exact_as_bytes_and_marked_as_text(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    token_bytes = TokenBytes(byte_level, 400)
    parts = byte_level("é", add_special_tokens=False)["input_ids"]
    assert [token_bytes.of(token) for token in parts] == [b"\xc3", b"\xa9"]
    assert [token_bytes.text(token) for token in parts] == ["\ufffd", "\ufffd"]


def test_special_and_added_tokens_are_their_names_and_padding_is_nothing(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    token_bytes = TokenBytes(byte_level, 400)
    added = byte_level.convert_tokens_to_ids("<¦tool▁call¦>")
    assert token_bytes.of(added) == "<¦tool▁call¦>".encode()
    assert token_bytes.of(0) == b"<|end|>"
    assert 0 in token_bytes.special and added not in token_bytes.special
    assert token_bytes.of(399) == b""


def test_bytes_and_spaces_of_sentencepiece_are_kept(byte_fallback: PreTrainedTokenizerFast) -> None:
    token_bytes = TokenBytes(byte_fallback, 300)
    names = ["▁he", "llo", "<0xC3>", "é", "▁▁", "<0x0A>", "</s>"]
    ids = byte_fallback.convert_tokens_to_ids(names)
    assert [token_bytes.of(token) for token in ids] == [
        b" he",
        b"llo",
        b"\xc3",
        "é".encode(),
        b"  ",
        b"\n",
        b"</s>",
    ]


def test_a_tokenizer_without_an_end_has_bytes_as_well(byte_level: PreTrainedTokenizerFast) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=byte_level.backend_tokenizer)
    assert TokenBytes(endless, 400).of(endless("fox")["input_ids"][0]) in (b"f", b"fo", b"fox")


def test_a_special_token_without_a_role_is_special_as_well(byte_level: PreTrainedTokenizerFast) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    )
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<¦header¦>", special=True)])
    header = tokenizer.convert_tokens_to_ids("<¦header¦>")
    assert header not in tokenizer.all_special_ids
    assert header in TokenBytes(tokenizer, 400).special
