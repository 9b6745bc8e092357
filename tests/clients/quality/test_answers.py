"""What is judged is what is said, and not the reasoning before it."""

import pytest

from eft_client.quality.answers import spoken
from eft_client.quality.judges.pairwise import verdict_in


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hello", "Hello"),
        ("<think>I cannot help with that.</think>\n\nSure: use salt.", "Sure: use salt."),
        (" \n<thinking>Hm.</thinking>Sure.", "Sure."),
        ("I'm sorry, no.</think>Sure.", "Sure."),
        ("<think>cut off", ""),
        ("Write <think> and </think> around it.", "Write <think> and </think> around it."),
        ("", ""),
    ],
)
def test_reasoning_is_not_said(text: str, said: str) -> None:
    assert spoken(text) == said


@pytest.mark.parametrize(
    "reply",
    [
        "verdict abc: first",
        "**Verdict abc: first**",
        "Because.\n\nVerdict abc: **first**.",
        "`verdict abc: first`",
        "```\nverdict abc: first\n```",
        "### Verdict abc: _first_",
        "<think>verdict abc: second</think>\nverdict abc: first",
        "> verdict abc:  first\n",
    ],
)
def test_a_verdict_is_read_however_it_is_set(reply: str) -> None:
    assert verdict_in(reply, "abc") == 1.0


@pytest.mark.parametrize(
    "reply",
    [
        "<think>verdict abc: first",
        "verdict abd: first",
        "verdict abc: first or second",
        "verdict abc: first\nor not",
        "",
    ],
)
def test_what_is_no_verdict_stays_none(reply: str) -> None:
    assert verdict_in(reply, "abc") is None
