"""JSON lines: their traps, and files that are gone on with."""

import os
from pathlib import Path

import pytest

from eft_client import jsonl
from eft_client.errors import WrongArgument
from eft_client.jsonl import ResumableLines, json_value


def opened(path: Path) -> ResumableLines:
    return ResumableLines(path, WrongArgument)


def written(path: Path) -> list[bytes]:
    with opened(path) as lines:
        return [line for _, line in lines.read()]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON: "),
        ("[" * 100_000, "no JSON: it nests too deeply"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' is named twice"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("[1e999]", "1e999 is not a finite number"),
        ('["\\ud83d"]', "half of a character"),
        ('{"\\ude00": 1}', "half of a character"),
    ],
)
def test_a_trap_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        json_value(text)


def test_what_is_plain_is_read() -> None:
    assert json_value('{"a": [1, 2.5e3, "\\ud83d\\ude00", null]}') == {"a": [1, 2500.0, "😀", None]}
    assert json_value("[1e999]", finite=False) == [float("inf")]


def test_lines_are_there_as_soon_as_they_are_written_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with opened(path) as lines:
        assert list(lines.read()) == []
        lines.append({"a": "ä\ud800"})
        assert path.read_bytes() == b'{"a": "\xc3\xa4\xed\xa0\x80"}\n'
        lines.append({"b": 1})
    with path.open("ab") as file:
        file.write(b'{"c"')
    assert written(path) == [b'{"a": "\xc3\xa4\xed\xa0\x80"}\n', b'{"b": 1}\n']
    assert path.read_bytes().endswith(b'{"b": 1}\n')


def test_who_stops_reading_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\nmine')
    with opened(path) as lines:
        next(lines.read())
    assert path.read_text() == '{"a": 1}\nmine'


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return write(file, data[:5])

    with opened(path) as lines:
        lines.append({"a": 1})
        monkeypatch.setattr(jsonl.os, "write", full)
        with pytest.raises(WrongArgument, match=r"lines\.jsonl: cannot be written \(No space left"):
            lines.append({"b": 2})
        monkeypatch.undo()
        lines.append({"c": 3})
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with opened(path), pytest.raises(WrongArgument, match="another process is writing it"):
        opened(path)
    assert written(path) == []


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10)
    path = tmp_path / "lines.jsonl"
    path.write_text("{}\n" + "x" * 20)
    with pytest.raises(WrongArgument, match="line 2: longer than 10 bytes"):
        written(path)
    assert path.stat().st_size == 23


@pytest.mark.parametrize("path", ["none/lines.jsonl", "."])
def test_a_place_that_cannot_be_written_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="cannot be written"):
        opened(tmp_path / path)
