"""The output of a batch: what a line holds, and what is gone on with."""

import json

import pytest

from eft_server.api.in_process import Answered
from eft_server.batch.answers import AnswerFile, made_with
from eft_server.batch.requests import Defaults
from eft_server.errors import BatchError

from ..api.served import family

ANSWERED = Answered(200, {"id": "chatcmpl-1", "choices": []})
MADE = made_with(family(), Defaults("demo", None, {"weights": {"helpful": 0.5}}))


@pytest.fixture
def out(tmp_path):
    """A file with the answer of one request."""
    path = tmp_path / "out.jsonl"
    with AnswerFile(path, MADE) as answers:
        answers.write("a", ANSWERED)
    return path


def test_a_line_is_openais(out):
    line = json.loads(out.read_text())
    assert line.pop("id").startswith("batch_req_")
    assert line == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": ANSWERED.body},
        "error": None,
    }


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with AnswerFile(tmp_path / "out.jsonl", MADE) as answers:
        answers.write("a", ANSWERED)
        assert (tmp_path / "out.jsonl").read_text().endswith("\n")


def test_complete_lines_are_done_and_a_torn_one_is_cut_off(out):
    whole = out.read_text()
    out.write_text(whole + whole[:-1].replace('"a"', '"b"'))
    with AnswerFile(out, MADE) as answers:
        assert answers.done == {"a"}
        answers.write("c", ANSWERED)
    assert [json.loads(line)["custom_id"] for line in out.read_text().splitlines()] == ["a", "c"]


def test_what_an_editor_adds_to_the_output_is_no_answer(out):
    out.write_bytes(b"\xef\xbb\xbf" + out.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    with AnswerFile(out, MADE) as answers:
        assert answers.done == {"a"}


@pytest.mark.parametrize(
    ("config", "defaults", "difference"),
    [
        (
            family(),
            Defaults("demo", None, {"weights": {"helpful": 1.0}}),
            "eft.weights.helpful was 0.5 and is now 1.0",
        ),
        (family(), Defaults("demo"), r"eft was {.*} and is now none"),
        (
            family().model_copy(update={"base": family().base.model_copy(update={"revision": "v2"})}),
            Defaults("demo", None, {"weights": {"helpful": 0.5}}),
            "members.base.revision was none and is now 'v2'",
        ),
    ],
)
def test_answers_made_with_something_else_are_not_mixed_unless_forced(out, config, defaults, difference):
    made = made_with(config, defaults)
    with pytest.raises(BatchError, match=difference) as caught:
        AnswerFile(out, made)
    assert "--force" in str(caught.value)
    with AnswerFile(out, made, force=True) as answers:
        assert answers.done == {"a"}
    AnswerFile(out, made).__exit__(None, None, None)


def test_how_the_family_is_served_makes_no_difference(out):
    with AnswerFile(out, made_with(family(max_concurrent_requests=1), Defaults("demo", None, MADE["eft"]))):
        pass


@pytest.mark.parametrize("note", [None, "", "{", "[]"])
def test_answers_that_nothing_is_known_of_are_refused(out, note):
    path = out.parent / "out.jsonl.made-with.json"
    path.unlink() if note is None else path.write_text(note)
    with pytest.raises(BatchError, match=r"without out\.jsonl\.made-with\.json beside it"):
        AnswerFile(out, MADE)


def test_a_file_of_something_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\nalso mine")
    with pytest.raises(BatchError, match=r"notes\.txt:1: is no answer of a batch"):
        AnswerFile(path, MADE, force=True)
    assert path.read_text() == "mine\nalso mine"


def test_a_file_that_another_process_writes_is_refused(out):
    with AnswerFile(out, MADE), pytest.raises(BatchError, match="another process is writing it"):
        AnswerFile(out, MADE)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BatchError, match="cannot be written"):
        AnswerFile(tmp_path / "none" / "out.jsonl", MADE)
