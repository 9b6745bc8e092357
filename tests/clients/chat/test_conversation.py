"""What was said, and the file that keeps it."""

from pathlib import Path

import pytest

from eft_client import WrongArgument
from eft_client.chat.conversation import MAX_FILE_BYTES, Conversation, Reply, Turn

SAID = Conversation(
    "Be brief.",
    [
        Turn("one", (Reply("1", "demo", {"weights": {"helpful": 1.0}}),)),
        Turn("two", (Reply("left", "demo"), Reply("right", "demo/base"))),
    ],
)


def test_each_side_of_a_comparison_remembers_its_own_answers() -> None:
    left, right = (SAID.messages("three", side) for side in (0, 1))
    assert [message["content"] for message in left] == ["Be brief.", "one", "1", "two", "left", "three"]
    assert [message["content"] for message in right] == ["Be brief.", "one", "1", "two", "right", "three"]
    assert [message["role"] for message in left] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_a_chat_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    SAID.save(path)
    assert Conversation.load(path) == SAID
    Conversation().save(path)
    assert Conversation.load(path) == Conversation()


def test_a_chat_that_an_editor_marked_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    SAID.save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Conversation.load(path) == SAID


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("years of work")
    with pytest.raises(WrongArgument, match="is no saved chat; choose another name"):
        SAID.save(path)
    assert path.read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"nowhere/chat\.json cannot be written: No such file"):
        SAID.save(tmp_path / "nowhere" / "chat.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is no saved chat"),
        ("[]", "is no saved chat"),
        ('{"form": "eft-chat-2", "system": null, "turns": []}', "form"),
        ('{"form": "eft-chat-1", "system": null, "turns": [{"question": "a", "answers": []}]}', "answers"),
        ('{"form": "eft-chat-1", "system": 7, "turns": []}', "system"),
        ('{"form": "eft-chat-1", "system": null, "turns": [], "more": 1}', "more"),
        ('{"a": ' * 10_000, "is no saved chat"),
        ("x" * (MAX_FILE_BYTES + 1), "is larger than"),
        ('{"form": "eft-chat-1", "system": null, "system": "a", "turns": []}', "'system' is named twice"),
    ],
)
def test_what_is_no_saved_chat_is_refused_with_its_place(content, words, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(WrongArgument, match=words) as refused:
        Conversation.load(path)
    assert len(str(refused.value)) < 400


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="cannot be read: No such file"):
        Conversation.load(tmp_path / "chat.json")
