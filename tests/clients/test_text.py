"""Text from elsewhere: files that somebody else wrote, and what cannot act on a terminal."""

from pathlib import Path

import pytest

from eft_client.errors import WrongArgument
from eft_client.text import printable, read_text, shortened


def test_a_file_of_the_largest_size_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_text("größer", encoding="utf-8")
    assert read_text(path, 8, WrongArgument) == "größer"


def test_a_byte_order_mark_at_the_beginning_is_no_text(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbftwo")
    assert read_text(path, 20, WrongArgument) == "one \ufefftwo"


def test_files_that_were_joined_have_no_mark_in_the_middle(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(2 * b"\xef\xbb\xbfone\r\n")
    assert read_text(path, 20, WrongArgument) == "one\r\none\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"12345678", "larger than 7 bytes"),
        (b"\xff", "not UTF-8: 'utf-8' codec can't decode"),
        ("Hi".encode("utf-16"), "UTF-16, and not UTF-8; convert it, as iconv"),
        ("Hi".encode("utf-16-be"), "zero bytes, as in UTF-16; expected UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_file(content, words, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WrongArgument, match=words) as caught:
        read_text(path, 7, WrongArgument)
    assert str(caught.value).startswith(f"{path}: ")


def test_nothing_is_read_beyond_the_bound():
    with pytest.raises(WrongArgument, match="larger than 1000 bytes"):
        read_text(Path("/dev/zero"), 1000, WrongArgument)


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "\x9b2J",
        "over\rwritten",
        "back\b\b\bspace",
        "\x7f",
        "right\u202eleft",
        "\u2066isolated",
        "\ud800",
        "null\x00",
        "next\x85line",
    ],
)
def test_what_acts_on_a_terminal_is_shown_and_not_done(hostile: str) -> None:
    shown = printable(hostile)
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    shown.encode("utf-8")


def test_ordinary_text_is_left_as_it_is() -> None:
    text = "Zwölf Boxkämpfer jagen\tViktor\n— 犬 👩‍💻 ½ שלום"
    assert printable(text) == text


def test_escapes_are_seen() -> None:
    assert printable("\x1b[31m") == "␛[31m"


def test_a_sequence_cut_in_two_is_as_harmless() -> None:
    assert printable("\x1b") + printable("[2J") == printable("\x1b[2J")


def test_long_text_is_cut_and_put_on_one_line() -> None:
    assert shortened("one\n two\tthree", 20) == "one two three"
    assert shortened("x" * 50, 10) == "x" * 9 + "…"
