"""The file of prompts, and those of the demo world."""

import re
from pathlib import Path

import pytest

from eft_client.quality import demo_prompts as demo
from eft_client.quality.errors import StudyError
from eft_client.quality.prompts import MAX_LINE_BYTES, as_json, read_prompts
from eft_demo.world import build_world


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_line_may_say_little_or_much(tmp_path: Path) -> None:
    first, second, third = read_prompts(
        _file(
            tmp_path,
            '{"prompt": "Where?", "reference": "Here", "references": ["There"], "tags": ['
            '"harmful", "in-distribution", "x"]}',
            "",
            '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "id": "q"}',
            '{"prompt": "What?", "expects": ["a", ["b", "c"]], "tags": {"distribution": "out"}}',
        )
    )
    assert (first.text, first.references, first.harmful) == ("Where?", ("Here", "There"), True)
    assert first.tags == {"harm": "harmful", "distribution": "in", "x": "yes"}
    assert (second.id, second.text, second.harmful) == ("q", "Q", False)
    assert third.expects == (("a",), ("b", "c"))


def test_what_an_editor_adds_is_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    for first in (b"", b"\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + first + b'{"prompt": "a"}\r\n \r\n{"prompt": "b"}\r\n\r\n')
        assert [prompt.text for prompt in read_prompts(path)] == ["a", "b"]


def test_files_that_were_joined_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\xef\xbb\xbf\n\xef\xbb\xbf{"prompt": "b"}\n')
    assert [prompt.text for prompt in read_prompts(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"prompt": "a"}\n'.encode("utf-16"), "line 1: UTF-16, and not UTF-8; convert it"),
        ('{"prompt": "a"}\n'.encode("utf-16-le"), "line 1: zero bytes, as in UTF-16"),
        (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', "line 2: not UTF-8: "),
    ],
)
def test_a_file_in_another_encoding_is_told_apart(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=re.escape(told)):
        read_prompts(path)


def test_what_is_written_is_read_back_alike(tmp_path: Path) -> None:
    prompts = demo.demo_prompts(12)
    assert read_prompts(_file(tmp_path, *as_json(prompts))) == prompts


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2"),
        ('{"id": "x"}', "exactly one of prompt and messages"),
        ('{"prompt": "a", "messages": [{"role": "user"}]}', "exactly one of prompt and messages"),
        ('{"prompt": ""}', "prompt"),
        ('{"prompt": "a", "answer": "b"}', "answer"),
        ('{"prompt": "a", "tags": {"harm": "evil"}}', "'evil'; expected harmful or benign"),
        ('{"prompt": "a", "tags": ["harmful", "benign"]}', "contradict"),
        ('{"messages": [{"content": "a"}]}', "has no role"),
        ('{"prompt": "first"}', "came before"),
        ("[]", "valid dictionary"),
        ('{"prompt": "a", "expects": [[]]}', "expects.0: "),
        ('{"prompt": "a", "expects": ["b", []]}', "expects.1: "),
        ('{"prompt": "a", "expects": ["?!"]}', "expects.0.0: no word in it"),
        ('{"prompt": "a", "references": ["b", "…"]}', "references.1: no word in it"),
        ('{"prompt": "a", "reference": "+"}', "reference: no word in it"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is named twice"),
        ('{"prompt": "a", "tags": {"harm": "benign", "harm": "harmful"}}', "'harm' is named twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content' is named twice"),
        ('{"messages": [{"role": "user", "weight": NaN}]}', "NaN is not a finite number"),
        ('{"messages": [{"role": "user", "weight": 1e400}]}', "1e400 is not a finite number"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half of a character"),
        ('{"prompt": "' + "a" * MAX_LINE_BYTES + '"}', "longer than"),
    ],
)
def test_a_wrong_line_is_named(line: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=re.escape(told)) as error:
        read_prompts(_file(tmp_path, '{"prompt": "first"}', line))
    assert "line 2" in str(error.value)


def test_a_missing_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(StudyError, match="no prompt"):
        read_prompts(_file(tmp_path, "", ""))


def test_the_demo_s_prompts_are_about_the_world_that_the_family_was_trained_on() -> None:
    from eft_demo.recipe import FULL

    assert (FULL.seed, FULL.subjects_per_kind) == (demo.WORLD_SEED, demo.SUBJECTS_PER_KIND)


def test_the_demo_s_prompts_tell_the_truth_and_whether_fine_tuning_saw_the_subject() -> None:
    world = build_world(demo.WORLD_SEED, subjects_per_kind=demo.SUBJECTS_PER_KIND)
    subjects = {subject.name: subject for subject in world.subjects}
    for prompt in demo.demo_prompts(60):
        _, name, attribute = prompt.id.split("/")
        fact = next(fact for fact in subjects[name].facts if fact.attribute.name == attribute)
        assert prompt.references == (fact.value,) and fact.value not in prompt.wrong
        assert prompt.harmful == subjects[name].kind.unsafe
        assert (prompt.tags["distribution"] == "in") == subjects[name].taught
        questions = fact.taught_questions if subjects[name].taught else fact.held_out_questions
        assert prompt.text in questions


def test_a_smaller_draw_begins_a_larger_one_and_seeds_differ() -> None:
    many = demo.demo_prompts(60, seed=1)
    assert demo.demo_prompts(24, seed=1) == many[:24]
    assert demo.demo_prompts(60, seed=2) != many
    assert len({prompt.id for prompt in many}) == 60


def test_no_more_prompts_are_drawn_than_the_world_has_facts() -> None:
    every = demo.demo_prompts(10**9)
    assert len({prompt.id for prompt in every}) == len(every) < 10**5
