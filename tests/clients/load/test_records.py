"""The file of records: what is written is read, and anything else refused."""

import json
from pathlib import Path

import pytest

from eft_client.load.errors import LoadError
from eft_client.load.records import read_records, write_header, write_record

from .made import failure, header, record


def written(path: Path, *records) -> Path:
    with path.open("w", encoding="utf-8") as file:
        write_header(file, header())
        for one in records:
            write_record(file, one)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    records = [record(), record(index=1, warm_up=True), failure("HTTP 429", message="\ud800 <busy>\n")]
    found = read_records(written(tmp_path / "raw.jsonl", *records[:2]))
    assert found == (header(), records[:2])
    assert len((tmp_path / "raw.jsonl").read_text().splitlines()) == 3


def test_a_message_stays_on_its_line(tmp_path: Path) -> None:
    lone = failure("HTTP 429", message="a\nb\u2028c")
    assert read_records(written(tmp_path / "raw.jsonl", lone))[1] == [lone]


def test_times_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    (found,) = read_records(written(tmp_path / "raw.jsonl", record(sent_ms=99.98765)))[1]
    assert found.sent_ms == 99.988


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "raw.jsonl", record(), record(index=1))
    path.write_bytes(path.read_bytes()[:-20])
    assert [one.index for one in read_records(path)[1]] == [0]


def test_what_an_editor_adds_is_no_record(tmp_path: Path) -> None:
    path = written(tmp_path / "raw.jsonl", record(), record(index=1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n\xef\xbb\xbf"))
    assert [one.index for one in read_records(path)[1]] == [0, 1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sent_ms": float("nan")}, "sent_ms"),
        ({"sent_ms": -1}, "sent_ms: .*greater than or equal to 0, not -1"),
        ({"repeat": "x"}, "repeat"),
        ({"chunks_ms": [200.0, 100.0]}, "must not go back"),
        ({"chunks_ms": []}, "must have chunks_ms"),
        ({"surprise": 1}, "surprise"),
        ({"output_tokens": 1 << 50}, "output_tokens"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, change: dict, problem: str) -> None:
    path = written(tmp_path / "raw.jsonl", record(), record())
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LoadError, match=f"line 3.*{problem}"):
        read_records(path)


def test_a_record_that_names_a_key_twice_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "raw.jsonl", record(), record())
    path.write_text(path.read_text()[:-2] + ',"repeat":0}\n')
    with pytest.raises(LoadError, match=r"line 3: 'repeat' is named twice"):
        read_records(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"format": 2}\n')
    with pytest.raises(LoadError, match="line 1"):
        read_records(tmp_path / "other.json")
    with pytest.raises(LoadError, match="missing"):
        read_records(tmp_path / "missing.jsonl")
