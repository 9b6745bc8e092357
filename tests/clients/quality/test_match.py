"""Reference match."""

import re
import string
import time

import pytest

from eft_client.quality.answers import Answer
from eft_client.quality.diversity.ead import words
from eft_client.quality.judges.match import MatchJudge, contains, exact, f1, mentions, normalise, tidy
from eft_client.quality.prompts import Prompt


def test_normalising_drops_case_punctuation_and_articles() -> None:
    assert normalise("The  “Quick”, an' a brown-fox!") == ("quick", "brownfox")
    assert normalise("It's $5 + `tax`|^~ = <6>") == ("its", "5", "tax", "6")
    assert normalise("THE") == normalise("…") == ()


def _squad(text: str) -> tuple[str, ...]:
    """`normalize_answer` as the specification says it, step by step."""
    lowered = "".join(c for c in text.lower() if c not in string.punctuation)
    return tuple(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


@pytest.mark.parametrize(
    "text",
    [
        "The U.S.-led force",
        "a+b=c",
        "don't `do` that",
        "A",
        "AC/DC & the $100 (approx.)",
        "x_1 ^ 2",
        "naïve café, 5 €",
    ],
)
def test_text_with_ascii_s_punctuation_is_normalised_as_squad_does(text: str) -> None:
    assert normalise(text) == _squad(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris—a city", ("paris", "city")),
        ("1914–1918", ("1914", "1918")),
        ("the fox’s well\u2011known “den”", ("foxs", "wellknown", "den")),
        ("巴黎是法国的首都。", ("巴", "黎", "是", "法", "国", "的", "首", "都")),
        ("首都はパリです", ("首", "都", "は", "パリ", "で", "す")),
        ("ปารีส", ("ป", "า", "รี", "ส")),
    ],
)
def test_other_punctuation_and_scripts_without_spaces_part_words(text: str, words: tuple[str, ...]) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    "answer",
    [
        "It is Paris--a city",
        "Paris/London",
        "(Paris)London",
        "Paris,France",
        "city=Paris;`x`",
        "**Paris**:yes",
    ],
)
def test_no_dash_or_symbol_hides_a_right_answer(answer: str) -> None:
    assert contains(answer, ["Paris"]) == 1.0 and mentions(answer, ["paris"])
    assert contains(answer, ["Rome"], ["Paris"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("born 1879-1955", "1879"),
        ("born 1879-1955", "1955"),
        ("a 1990-built house", "1990"),
        ("Answer:42", "42"),
        ("in 1990/1991", "1991"),
        ("capital(1990)", "1990"),
        ("city('Paris')", "Paris"),
        ("x=42", "42"),
        ("x=-5", "-5"),
        ("x≈42", "42"),
        ("→Paris", "Paris"),
        ("Paris→Rome", "Paris"),
        ("Paris→Rome", "Rome"),
        ("Paris™", "Paris"),
        ("❤\ufe0fParis", "Paris"),
        ("Paris...London", "Paris"),
        ("€5", "5"),
        ("It is −5.", "-5"),
        ("−5", "−5"),
        ("２０", "20"),  # noqa: RUF001
        ("Ｐａｒｉｓ", "Paris"),  # noqa: RUF001
        ("٢٠", "20"),
        ("20℃", "20 °C"),
        ("a 2½", "2 1/2"),
        ("1\u202f000", "1,000"),
        ("答案：42。", "42"),  # noqa: RUF001
        ("COVID-19", "COVID19"),
        ("COVID-19", "Covid 19"),
        ("the 🎉 of it", "🎉"),
    ],
)
def test_no_dash_symbol_or_width_hides_a_right_number_or_name(answer: str, reference: str) -> None:
    assert contains(answer, [reference]) == 1.0 and mentions(answer, [reference])
    assert contains(f"x {answer}", ["x"], [reference]) == 0.0


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("3.14", "14"),
        ("3,14", "3"),
        ("1,000", "1"),
        ("$1,000.50", "50"),
        ("1,000,000", "000"),
        ("12:30", "30"),
        ("12：30", "12"),  # noqa: RUF001
        ("３．１４", "14"),  # noqa: RUF001
        ("٣٫١٤", "14"),  # noqa: RUF001
        ("1\u202f000", "1"),
        ("a 2½", "21"),
        ("5−3", "53"),
    ],
)
def test_a_number_contains_no_part_of_itself(answer: str, part: str) -> None:
    assert contains(answer, [part]) == 0.0 and not mentions(answer, [part])
    assert contains(answer, [answer]) == 1.0


@pytest.mark.parametrize("unseen", ["\u200b", "\u2060", "\ufeff", "\u00ad", "\u200e", "\u200c"])
def test_what_takes_no_room_is_in_no_word(unseen: str) -> None:
    text = f"Pa{unseen}ris is{unseen} big"
    assert (
        normalise(text) == ("paris", "is", "big")
        and exact(text, "Paris is big") == f1(text, "Paris is big") == 1
    )
    assert contains(text, ["Paris"]) == 1.0
    assert words(text) == ["Paris", "is", "big"]
    assert tidy(f"I{unseen} can{unseen}not.") == "I cannot."


def test_a_space_without_width_parts_the_words_of_khmer_and_thai_and_hides_none() -> None:
    assert contains("ប្រទេស\u200bកម្ពុជា\u200bគឺ", ["ប្រទេសកម្ពុជា"]) == 1.0
    assert exact("กรุงเทพ\u200bมหานคร", "กรุงเทพมหานคร") == 1.0
    assert contains("กรุงเทพมหานคร", ["กรุงเทพ\u200bมหานคร"]) == 1.0


@pytest.mark.parametrize(
    "text", ["U.S.-led", "and/or", "AT&T", "$1,000.50", "don't", "C++11", "x_1", "3.5%", "2024-05-17"]
)
def test_a_text_contains_itself_however_it_is_written(text: str) -> None:
    assert contains(f"It is {text}, they say", [text]) == 1.0
    assert exact(text, text) == 1.0 and normalise(text) == _squad(text)


def test_right_answers_are_found_in_any_script() -> None:
    assert contains("Paris—a city in France", ["Paris"]) == 1.0
    assert contains("法国的首都是巴黎。", ["巴黎"]) == 1.0
    assert contains("フランスの首都はパリです。", ["パリ"]) == 1.0
    assert contains("法国的首都是里昂。", ["巴黎"]) == 0.0
    assert f1("首都是巴黎", "巴黎") == pytest.approx(2 * 2 / 7)
    assert contains("A.", ["A"]) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [("The Nile.", "nile", 1.0), ("Nile river", "nile", 0.0), ("", "nile", 0.0)],
)
def test_exact_compares_normalised_words(answer: str, reference: str, value: float) -> None:
    assert exact(answer, reference) == value


def test_f1_counts_words_as_often_as_they_occur() -> None:
    # Common: honey once, and once. 2 · 2 / (4 + 3)
    assert f1("honey honey and figs", "honey and pears") == pytest.approx(4 / 7)
    assert f1("figs", "honey") == 0.0
    assert f1("", "honey") == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("It is two weeks.", 1.0),
        ("Two weeks, or a month.", 0.0),
        ("It is two weeksly.", 0.0),
        ("A month.", 0.0),
        ("It takes a week, no, two weeks.", 0.0),
    ],
)
def test_containing_needs_a_right_answer_and_no_wrong_one(answer: str, value: float) -> None:
    assert contains(answer, ["two weeks", "fourteen days"], ["a week", "a month"]) == value


def test_a_wrong_answer_inside_of_a_right_one_does_not_count() -> None:
    assert contains("half an hour", ["half an hour"], ["an hour"]) == 1.0
    assert contains("an hour and half an hour", ["half an hour"], ["an hour"]) == 0.0
    assert contains("half an hour, half an hour", ["half an hour"], ["an hour"]) == 1.0


def test_an_answer_that_only_repeats_a_symbol_takes_no_longer_than_another() -> None:
    began_s = time.process_time()
    assert contains("!" * 20_000, ["Paris"]) == 0.0
    assert contains("!" * 20_000 + "Paris", ["Paris"]) == 1.0
    assert time.process_time() - began_s < 1


def test_a_reference_without_words_is_in_no_text() -> None:
    assert contains("anything …", ["…"]) == 0.0
    assert not mentions("anything", ["!"])


def test_the_judge_keeps_the_best_reference_and_counts_no_harmful_prompt() -> None:
    prompt = Prompt(
        id="one", messages=({"role": "user", "content": "?"},), references=("Nile", "the Nile river")
    )
    found = MatchJudge().judge(prompt, Answer("Nile river!", "stop"))
    assert found == {"factuality": 1.0, "exact": 1.0, "f1": 1.0}
    harmful = Prompt(id="two", messages=prompt.messages, references=("Nile",), tags={"harm": "harmful"})
    assert MatchJudge().judge(harmful, Answer("Nile", "stop")) == {}
    assert MatchJudge().judge(Prompt(id="three", messages=prompt.messages), Answer("Nile", "stop")) == {}
