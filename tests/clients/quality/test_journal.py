"""What was paid for stays."""

from pathlib import Path

import pytest

from eft_client.quality.errors import StudyError
from eft_client.quality.journal import Journal, content_key


def test_entries_are_found_again_by_key(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"text": "ä\ud800"})
        journal.append("b", {"text": "2"})
    with Journal(path) as again:
        assert len(again) == 2 and again.get("a") == {"key": "a", "text": "ä\ud800"}
        assert again.get("c") is None


def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "n"')
    with Journal(path) as journal:
        assert len(journal) == 1
        journal.append("c", {"n": 3})
    assert path.read_text() == '{"key": "a", "n": 1}\n{"key": "c", "n": 3}\n'


def test_what_an_editor_adds_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"key": "a"}\r\n\r\n\xef\xbb\xbf{"key": "b"}\n')
    with Journal(path) as journal:
        assert len(journal) == 2
        journal.append("c", {"n": 3})
    with Journal(path) as journal:
        assert len(journal) == 3


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(StudyError, match="line 2"):
        Journal(path)


def test_one_run_at_a_time_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path), pytest.raises(StudyError, match="another run"):
        Journal(path)
    with Journal(path) as journal:
        assert len(journal) == 0


def test_the_key_is_of_the_content_and_not_of_its_order() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
