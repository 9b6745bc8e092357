"""A composite that thinks: a reasoning parser over a real engine, and a constraint that begins where thinking ends."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from .conftest import Server, start_server, stop_server
from .random_family import write_family

MARKS = ("<think>", "</think>")
ANSWER = "(fox|dog) jumps"
HALF = "\N{REPLACEMENT CHARACTER}"
LEANING = 9
"""Makes a random model end its thinking at some time, but seldom at once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a family whose vocabulary has the marks; the operator names the parser that knows them."""
    path = write_family(tmp_path_factory.mktemp("thinking"))
    for checkpoint in path.parent.iterdir():
        if checkpoint.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            tokenizer.add_tokens(list(MARKS))
            tokenizer.save_pretrained(checkpoint)
    server = start_server(str(path), "--set", "server.reasoning_parser=deepseek_r1")
    yield server
    assert stop_server(server) == 0


@pytest.fixture(scope="module")
def chat(server: Server) -> dict[str, Any]:
    """A sampled chat that leans to the end of thinking, and is held to the answer behind it."""
    body = {"prompt": MARKS[1], "add_special_tokens": False}
    (end,) = httpx.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Who jumps?"}],
        "max_tokens": 150,
        "temperature": 1.0,
        "seed": 5,
        "logit_bias": {str(end): LEANING},
        "extra_body": {"eft": {"weights": {"helpful": 0.7}}, "structured_outputs": {"regex": ANSWER}},
    }


def test_thinking_comes_apart_from_an_answer_that_keeps_to_its_constraint(
    client: OpenAI, chat: dict[str, Any]
) -> None:
    choices = client.chat.completions.create(**chat, n=4).choices
    assert any(getattr(choice.message, "reasoning", None) for choice in choices)
    for choice in choices:
        assert choice.finish_reason == "stop"
        assert re.fullmatch(ANSWER, choice.message.content or "")


def test_a_stream_tells_them_apart_as_the_whole_answer_does(client: OpenAI, chat: dict[str, Any]) -> None:
    """But for half a character, which is held back until the rest comes, and lost where the mark comes instead."""
    whole: Any = client.chat.completions.create(**chat).choices[0].message
    deltas: list[Any] = [
        choice.delta
        for chunk in client.chat.completions.create(**chat, stream=True)
        for choice in chunk.choices
    ]
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    thought = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    assert whole.reasoning.rstrip(HALF), "it thought"
    assert thought.rstrip(HALF) == whole.reasoning.rstrip(HALF)
