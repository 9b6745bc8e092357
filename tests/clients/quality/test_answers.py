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
        ("<THINK>Hm.</Think>Sure.", "Sure."),
        ("[THINK]Hm.[/THINK]Sure.", "Sure."),
        ("[THINK]Hm.", ""),
        ("Hm.[/THINK]Sure.", "Sure."),
        ("<reasoning>I cannot help.</reasoning>\nSure.", "Sure."),
        ("<seed:think>Hm.</seed:think>Sure.", "Sure."),
        ("<thought>Hm.</thought>Sure.", "Sure."),
        ("◁think▷I cannot help.◁/think▷Sure.", "Sure."),
        ("Hm.◁/think▷Sure.", "Sure."),
        ("<think>A </thinking> b.</think>Sure.", "Sure."),
        ("<think>A.</think>\n<think>B.</think>Sure.", "Sure."),
        ("<think>A.</think>Write </think> at its end.", "Write </think> at its end."),
        ("I think [so]. <b>Sure.</b>", "I think [so]. <b>Sure.</b>"),
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
        "- verdict abc: first",
        "1. verdict abc: first",
        "**2)** [[verdict abc: first]]",
        "Because:\n3. **Verdict abc:** first",
        "verdict abc: <first>",
        "<verdict abc: first>",
        '"verdict abc: first"',
        "“verdict abc: first”",
        "[verdict abc: first]",
        "(Verdict abc: first)",
        "\\boxed{verdict abc: first}",
        "$$\\boxed{\\text{verdict abc: first}}$$",
        "<b>verdict abc: first</b>",
        "<answer>verdict abc: first</answer>",
        "verdict abc: first\n---",
        "verdict abc: first</s>",
        "verdict abc: first\n</s>",
        "verdict abc: first<|im_end|>",
        "verdict abc: first<｜end▁of▁sentence｜>",  # noqa: RUF001
        "verdict abc : first",
        "verdict abc：first",  # noqa: RUF001
        "verdict\u00a0abc:\u00a0first",
        "verdict abc: first\u200b",
        "verdict abc: first\u200b\n\u200b",
        "verdict abc: first!",
        "verdict abc: first ✅",
        "VERDICT ABC: FIRST",
        "[THINK]verdict abc: second[/THINK]verdict abc: first",
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
        "verdict abc: first/second",
        "verdict abc: not-first",
        "verdict abc: firstly",
        "verdict abcd: first",
        "verdict abc: first verdict abc: second",
        "1. verdict abc: first 2. verdict abc: second",
        "verdict abc: <first|second>",
        "verdict 1 abc: first",
        "1. first",
        "1.",
        "verdict abc: second\n<b>But</b>",
        "verdict: first",
        "abc: first",
        "verdict abc:",
        "---",
        "verdict abc: first\nor not",
        "",
    ],
)
def test_what_is_no_verdict_stays_none(reply: str) -> None:
    assert verdict_in(reply, "abc") is None
