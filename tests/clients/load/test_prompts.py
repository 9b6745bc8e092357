"""What is asked: made up, or from files."""

import json
from itertools import islice
from pathlib import Path

import pytest

from eft_client.load.errors import LoadError
from eft_client.load.prompts import FromFile, Lengths, LoadPrompt, Synthetic, TokensPerWord, read_prompts

MADE_UP = Synthetic(
    input_tokens=Lengths(mean=100, spread=0.5),
    output_tokens=Lengths(mean=20, spread=0.5),
    rate=TokensPerWord(overhead=10, per_word=2),
)


def test_made_up_prompts_have_the_lengths_that_were_asked_for() -> None:
    prompts = list(islice(MADE_UP.draw("same", "own"), 500))
    tokens = [10 + 2 * len((prompt.text or "").split()) for prompt in prompts]
    assert 48 <= min(tokens) <= 56
    assert 144 <= max(tokens) <= 152
    assert sum(tokens) / 500 == pytest.approx(100, abs=4)
    assert {prompt.max_tokens for prompt in prompts} == set(range(10, 31))


def test_targets_get_the_same_lengths_and_other_words() -> None:
    one, other = (list(islice(MADE_UP.draw("same", own), 20)) for own in ("one", "other"))
    lengths = [
        [(len((prompt.text or "").split()), prompt.max_tokens) for prompt in each] for each in (one, other)
    ]
    assert lengths[0] == lengths[1]
    assert not {prompt.text for prompt in one} & {prompt.text for prompt in other}
    assert one == list(islice(MADE_UP.draw("same", "one"), 20))


def test_the_rate_of_tokens_is_the_line_through_two_counts() -> None:
    rate = TokensPerWord.from_counts((8, 27), (32, 75))
    assert rate == TokensPerWord(overhead=11, per_word=2)
    assert rate.words(51) == 20
    assert rate.words(3) == 1


def test_a_server_that_counts_oddly_gives_no_endless_prompts() -> None:
    assert TokensPerWord.from_counts((8, 50), (32, 50)).words(100) <= 400


def test_lines_are_prompts_or_conversations(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    lines = [{"prompt": "Hello"}, {"messages": messages, "max_tokens": 7}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    found = read_prompts(path, chat=True)
    assert found.prompts == (LoadPrompt(text="Hello"), LoadPrompt(messages=messages, max_tokens=7))


def test_a_byte_order_mark_blank_lines_and_crlf_are_nothing(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a\\r"}\r\n\r\n \t\r\n\xef\xbb\xbf{"prompt": "b"}\r\n')
    assert [prompt.text for prompt in read_prompts(lines, chat=True).prompts] == ["a\r", "b"]
    talks = tmp_path / "sharegpt.json"
    talks.write_bytes(b'\xef\xbb\xbf[{"conversations":\r\n[{"value": "a"}]}]\r\n')
    assert [prompt.text for prompt in read_prompts(talks, chat=True).prompts] == ["a"]


def test_a_file_begins_again_when_it_is_used_up() -> None:
    source = FromFile(prompts=(LoadPrompt(text="a"), LoadPrompt(text="b")))
    assert [prompt.text for prompt in islice(source.draw("same", "own"), 5)] == ["a", "b", "a", "b", "a"]


def test_distinct_prompts_never_begin_alike() -> None:
    talk = LoadPrompt(messages=[{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}])
    source = FromFile(prompts=(LoadPrompt(text="a"), talk), distinct=True)
    first, second = (list(islice(source.draw("same", own), 4)) for own in ("one", "other"))
    texts = [prompt.text for prompt in (first[0], first[2], second[0], second[2])]
    assert len(set(texts)) == 4
    assert all((text or "").endswith("\na") for text in texts)
    assert first[1].messages is not None
    assert first[1].messages[0]["content"].endswith("\nb")
    assert first[1].messages[1] == {"role": "assistant", "content": "c"}
    assert talk.messages is not None
    assert talk.messages[0]["content"] == "b"


def test_the_first_turn_of_sharegpt_s_conversations_is_asked(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"id": "x", "conversations": turns}, {"conversations": []}]))
    assert read_prompts(path, chat=True).prompts == (LoadPrompt(text="Hello"),)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", r'line 2: expected \{"prompt"'),
        ('{"prompt": "a", "messages": []}', "line 2: expected"),
        ('{"prompt": ""}', "line 2: prompt must be text that is not empty, not ''"),
        ('{"prompt": 7}', "line 2: prompt must be text .* not 7"),
        ('{"prompt": "a", "max_tokens": 0}', "line 2: max_tokens .* not 0"),
        ('{"prompt": "a", "max_tokens": true}', "line 2: max_tokens .* not True"),
        ('{"messages": []}', "line 2: messages must be a list"),
        ('{"messages": [{"role": "user"}]}', "line 2: a message must be"),
        ('{"messages": [{"role": "user", "content": null}]}', "line 2: a message must be"),
        ("[" * 100_000, "line 2: no JSON"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: 'prompt' is named twice"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(LoadError, match=problem):
        read_prompts(path, chat=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "expected a list"),
        ('[{"conversation": []}]', "entry 1: expected"),
        ('[{"conversations": [{"value": 3}]}]', "entry 1: a turn must be"),
        ("[]", "0 prompts"),
        ('[{"conversations": [], "conversations": []}]', "'conversations' is named twice"),
    ],
)
def test_a_sharegpt_file_that_is_none_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(content)
    with pytest.raises(LoadError, match=problem):
        read_prompts(path, chat=True)


def test_conversations_are_not_for_the_completions_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    with pytest.raises(LoadError, match="--endpoint chat"):
        read_prompts(path, chat=False)
