"""Data: every form that is read, what is named where a row is wrong, and how prompts are divided."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from eft_client.jsonl import json_value
from eft_train.data.forms import Example, RowError, example_of
from eft_train.data.reading import Data, DataSource, divide, read_data, write_examples
from eft_train.errors import TrainingError

from .tiny import pairs, write_rows

USER = {"role": "user", "content": "Why?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("So.", "No."))
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"


def _read(row: Any, *, hh_as_text: bool = False) -> Example:
    return example_of(row, "row-1", hh_as_text=hh_as_text)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": "So.", "rejected": "No."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        # UltraFeedback, binarised.
        {
            "prompt": "Why?",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
        },
    ],
    ids=["answers as text", "TRL's conversational form", "whole conversations", "ultrafeedback"],
)
def test_pairs_of_conversations_are_read_alike(row: dict[str, Any]) -> None:
    assert _read(row) == Example("row-1", (USER,), "So.", "No.")


def test_pairs_of_text_stay_text() -> None:
    assert _read({"prompt": "Why?", "chosen": " So", "rejected": " No"}) == Example(
        "row-1", "Why?", " So", " No"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [GOOD]},
        {"messages": [USER, GOOD]},
        {"messages": [USER, GOOD], "prompt": None},
    ],
)
def test_single_answers_are_read_alike(row: dict[str, Any]) -> None:
    assert _read(row) == Example("row-1", (USER,), "So.")


def test_a_dialogue_of_hh_rlhf_becomes_a_conversation() -> None:
    prompt = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER)
    assert _read({"chosen": HH + " So.", "rejected": HH + " No."}) == Example("row-1", prompt, "So.", "No.")


def test_a_dialogue_of_hh_rlhf_stays_text_for_a_model_without_a_template() -> None:
    assert _read({"chosen": HH + " So.", "rejected": HH + " No."}, hh_as_text=True) == Example(
        "row-1", HH, " So.", " No."
    )


def test_an_example_is_written_as_a_row_that_reads_alike(tmp_path: Path) -> None:
    rows = [
        {
            "id": "a",
            "prompt": [USER],
            "chosen": "So.",
            "rejected": "No.",
            "chosen_rephrased": "Thus.",
            "score": 1,
        },
        {"id": "b", "prompt": [USER], "chosen": "Só.", "rejected": "No."},
    ]
    examples = read_data(DataSource(str(write_rows(tmp_path / "in.jsonl", rows)))).examples
    write_examples(tmp_path / "out.jsonl", examples)
    assert read_data(DataSource(str(tmp_path / "out.jsonl"))).examples == examples
    first = json_value((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first == {key: value for key, value in rows[0].items() if key != "score"}


def test_a_label_stays_with_a_single_answer() -> None:
    assert _read({"prompt": "a", "completion": "b", "label": 1}).as_json()["label"] == 1
    assert "label" not in _read({"prompt": "a", "completion": "b", "label": {"is": 1}}).as_json()


def test_a_rephrase_without_a_pair_is_dropped_and_one_that_is_no_text_is_named() -> None:
    assert "chosen_rephrased" not in _read({"prompt": "a", "completion": "b", "chosen_rephrased": "c"}).kept
    with pytest.raises(RowError, match="chosen_rephrased: holds 3, not text"):
        _read({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_rephrased": 3})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "holds an array, not an object; expected {prompt, chosen, rejected}"),
        ({"question": "a", "answer": "b"}, "has the fields question, answer; expected"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}, "has the fields"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected: is empty"),
        ({"prompt": "", "completion": "b"}, "prompt: is empty"),
        ({"prompt": "a", "completion": 3}, "completion: holds 3, not text"),
        ({"prompt": "a", "completion": [USER]}, "completion: expected text, or a list of one message"),
        ({"prompt": [USER, GOOD], "completion": "b"}, "prompt: ends with a message of the assistant"),
        (
            {"prompt": [{"role": "tool", "content": "a"}], "completion": "b"},
            "prompt.0.role: is 'tool'; expected",
        ),
        ({"prompt": [{"role": "user"}], "completion": "b"}, "prompt.0.content: holds null, not text"),
        ({"prompt": [USER | {"tool_calls": []}], "completion": "b"}, "prompt.0.tool_calls: is not learnt"),
        ({"messages": [USER]}, "messages: has to end with a message of the assistant"),
        ({"messages": "hello"}, "messages: holds 'hello'; expected text or a list"),
        (
            {"chosen": [USER, GOOD], "rejected": [GOOD, BAD]},
            "rejected: its messages before the answer are not",
        ),
        ({"chosen": [USER, GOOD], "rejected": "No."}, "rejected: holds 'No.'"),
        ({"chosen": "So.", "rejected": "No."}, "chosen: is no dialogue of the form"),
        ({"chosen": HH + " So.", "rejected": HH.replace("Hi", "Ho") + " No."}, "rejected: its turns before"),
        ({"chosen": HH + " So.", "rejected": HH}, "rejected: its last turn is empty"),
        (
            {"chosen": HH + " So.\n\nHuman: And?", "rejected": HH + " No."},
            "chosen: ends with a turn of Human",
        ),
    ],
)
def test_a_wrong_row_is_named_by_its_field(row: Any, message: str) -> None:
    with pytest.raises(RowError) as caught:
        _read(row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a", "completion": "b"}', "", "{"], "rows.jsonl:3: no JSON"),
        (["prompt,completion"], "; expected a JSON object in each line"),
        (['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}'], "rows.jsonl:2: has the fields prompt"),
        (
            ['{"prompt": "a", "completion": "b"}', '{"messages": [{"role": "user", "content": "a"}, {"role": '
             '"assistant", "content": "b"}]}'],
            "rows.jsonl:2: prompt: is a conversation; in the first row it is text",
        ),
        (
            ['{"prompt": "a", "completion": "b"}', '{"prompt": "a", "chosen": "b", "rejected": "c"}'],
            "rows.jsonl:2: rejected: is given; in the first row it is missing",
        ),
        (['{"id": "x", "prompt": "a", "completion": "b"}'] * 2, "rows.jsonl:2: id: 'x' has been given before"),
        (["", ""], "rows.jsonl: holds no rows"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_by_its_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(TrainingError) as caught:
        read_data(DataSource(str(path)))
    assert message in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TrainingError, match=r"nowhere.jsonl: No such file"):
        read_data(DataSource("nowhere.jsonl"))


def test_broken_dialogues_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"chosen": HH + " So.", "rejected": HH + " No."}, {"chosen": HH + " So.", "rejected": HH}]
    data = read_data(DataSource(str(write_rows(tmp_path / "hh.jsonl", rows))))
    assert len(data.examples) == 1
    assert [line.partition(": ")[2] for line in data.left_out] == ["rejected: its last turn is empty"]


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs(3))
    assert read_data(DataSource(str(path))).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_data_set_is_read_like_a_file(tmp_path: Path) -> None:
    rows = pairs(3)
    (tmp_path / "set" / "part").mkdir(parents=True)
    write_rows(tmp_path / "set" / "part" / "train.jsonl", rows)
    found = read_data(DataSource(str(tmp_path / "set"), folder="part"))
    assert [(example.prompt, example.chosen) for example in found.examples] == [
        (tuple(row["prompt"]), row["chosen"]) for row in rows
    ]
    assert [example.id for example in found.examples] == ["row-0", "row-1", "row-2"]
    again = read_data(DataSource(str(tmp_path / "set"), folder="part"))
    assert (again.sha256, len(again.sha256)) == (found.sha256, 64)


def test_rows_of_a_data_set_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = pairs(3)
    rows[1]["rejected"] = " "
    file = write_rows(tmp_path / "set" / "train.jsonl", rows)
    found = read_data(DataSource(str(tmp_path / "set")))
    assert [example.id for example in found.examples] == ["row-0", "row-2"]
    assert [line.partition("row 1: ")[2] for line in found.left_out] == ["rejected: is empty"]
    with pytest.raises(TrainingError, match=r"train.jsonl:2: rejected: is empty"):
        read_data(DataSource(str(file)))


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match=r"^nobody/nothing: "):
        read_data(DataSource("nobody/nothing"))


def _data(prompts: list[str]) -> Data:
    examples = tuple(Example(f"row-{n}", prompt, f"a{n}", f"b{n}") for n, prompt in enumerate(prompts))
    return Data(DataSource("here"), examples, "")


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_is_on_both_sides(seed: int) -> None:
    divided = divide(_data([f"p{n % 13}" for n in range(60)]), 0.3, seed)
    sides = [{example.prompt for example in side} for side in (divided.trained_on, divided.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert sum(map(len, (divided.trained_on, divided.held_out))) == 60
    assert 0.2 < len(divided.held_out) / 60 < 0.42


def test_the_seed_decides_what_is_held_out() -> None:
    data = _data([f"p{n}" for n in range(50)])
    first, again, other = (divide(data, 0.2, seed).held_out for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10


def test_nothing_is_held_out_where_nothing_is_to_be() -> None:
    assert divide(_data(["a", "b"]), 0.0, 0).held_out == ()


def test_prompts_of_a_held_out_file_are_not_learnt() -> None:
    divided = divide(_data(["a", "b", "a", "c"]), _data(["a", "z"]), 0)
    assert [example.prompt for example in divided.trained_on] == ["b", "c"]
    assert (len(divided.held_out), divided.shared) == (2, 2)


def test_at_most_so_many_examples_are_learnt() -> None:
    divided = divide(_data([f"p{n}" for n in range(20)]), 0.5, 0, most=4)
    assert (len(divided.trained_on), len(divided.held_out)) == (4, 10)


def test_something_has_to_be_left_to_learn() -> None:
    with pytest.raises(TrainingError, match="nothing is left to learn from"):
        divide(_data(["a", "a"]), 0.5, 0)


def test_an_id_is_unique_over_rows_without_one(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"id": "row-1", "prompt": "c", "completion": "d"}]
    with pytest.raises(TrainingError, match=r"2: id: 'row-1' has been given before"):
        read_data(DataSource(str(write_rows(tmp_path / "rows.jsonl", rows))))


def test_several_pairs_of_a_prompt_may_share_its_id(tmp_path: Path) -> None:
    rows = [{"prompt_id": "p", "prompt": "a", "completion": answer} for answer in "bcd"]
    examples = read_data(DataSource(str(write_rows(tmp_path / "rows.jsonl", rows)))).examples
    assert [example.id for example in examples] == ["p", "row-2", "row-3"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"})[:-1] + ', "prompt": "c"}')
    with pytest.raises(TrainingError, match=r"rows.jsonl:1: .*'prompt' is named twice"):
        read_data(DataSource(str(path)))
