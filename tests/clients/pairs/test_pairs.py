"""Files of pairs: the forms that are read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from eft_client.errors import WrongArgument
from eft_client.pairs.engine import opened
from eft_client.pairs.errors import PairsError
from eft_client.pairs.pair import read_pairs

PAIR = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_text_and_conversations_are_read_alike(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Who?"}]
    chat = {"prompt": turns, "chosen": [{"role": "assistant", "content": "Me."}], "rejected": "You."}
    text, spoken = read_pairs(written(tmp_path, PAIR, "", chat))
    assert (text.prompt, text.chosen, text.rejected, text.context) == (
        "Who?",
        "Me.",
        "You.",
        {"prompt": "Who?"},
    )
    assert spoken.prompt == tuple(turns) and spoken.chosen == "Me."
    assert spoken.context == {"messages": turns} and spoken.question == text.question == "Who?"


def test_completions_have_no_rejected_answer_and_keep_their_label(tmp_path: Path) -> None:
    [pair] = read_pairs(written(tmp_path, {"prompt": "Who?", "completion": "Me.", "label": True}))
    assert (pair.chosen, pair.rejected, pair.label) == ("Me.", None, True)


def test_rephrased_answers_are_kept_and_leave_the_id_as_it_is(tmp_path: Path) -> None:
    [plain] = read_pairs(written(tmp_path, PAIR))
    [more] = read_pairs(written(tmp_path, PAIR | {"chosen_rephrased": "I.", "rejected_rephrased": "Thou."}))
    assert more.id == plain.id and (more.chosen_rephrased, more.rejected_rephrased) == ("I.", "Thou.")


def test_equal_lines_count_once(tmp_path: Path) -> None:
    assert len(read_pairs(written(tmp_path, PAIR, PAIR, PAIR | {"chosen": "We."}))) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "Who?"}, "exactly one of completion and chosen"),
        ({"prompt": "Who?", "chosen": "Me."}, "chosen and rejected belong together"),
        (PAIR | {"chosen": [{"role": "user", "content": "Me."}]}, "list of one message of the assistant"),
        (PAIR | {"prompt": []}, "prompt"),
        ("{", "no JSON"),
    ],
)
def test_another_line_is_refused_by_its_number(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(PairsError, match="line 2") as raised:
        read_pairs(written(tmp_path, PAIR, line))
    assert said in str(raised.value)


def test_what_else_data_sets_have_in_a_line_is_not_read(tmp_path: Path) -> None:
    [plain] = read_pairs(written(tmp_path, PAIR))
    assert read_pairs(written(tmp_path, PAIR | {"score_chosen": 3.5, "label": 1, "id": 7})) == [plain]


def test_an_id_comes_once(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="'a' came before"):
        read_pairs(written(tmp_path, PAIR | {"id": "a"}, PAIR | {"id": "a", "chosen": "We."}))


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="No such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(PairsError, match="no pair in it"):
        read_pairs(written(tmp_path, ""))


def test_a_server_keeps_its_family_file() -> None:
    for arguments in [(None, None, ()), ("demo", "http://127.0.0.1:9/v1", ("vllm.seed=1",))]:
        with pytest.raises(WrongArgument), opened(*arguments):
            pass
