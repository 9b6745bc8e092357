"""The request of the page, copied and run as it is, gives the page's answer: sampled, with its seed."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import KEY
from .visit import Visit

QUESTION = "Where's the \"velvet venom\"?\n\\ $HOME `id` é 👩 it's"


def _copied(visit: Visit, hook: str) -> str:
    shown = visit.at(hook).text_content()
    assert shown is not None
    assert KEY not in shown
    return shown


def _ran(command: list[str], script: str) -> str:
    environment = os.environ | {"EFT_API_KEY": KEY, "PYTHONUTF8": "1"}
    return subprocess.run(
        command, input=script, capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.parametrize("mode", ["chat", "text"])
def test_every_copied_request_gives_the_pages_answer(visit: Visit, mode: str) -> None:
    visit.at(f"mode-{mode}").click()
    for hook, value in {"temperature": 1.3, "top-p": 0.95, "seed": 5, "max-tokens": 24}.items():
        visit.set(hook, value)
    visit.set("slider-harmless", 0.3)
    visit.set("filter-kind", "base")
    visit.ask(QUESTION)
    said = visit.text()
    assert said.strip()

    answer = json.loads(_ran(["/bin/bash"], _copied(visit, "snippet-curl")))
    choice = answer["choices"][0]
    assert (choice["message"]["content"] if mode == "chat" else choice["text"]) == said
    assert answer["eft"]["weights"]["harmless"] == 0.3
    assert answer["eft"]["filter"]["kind"] == "base"
    assert _ran([sys.executable], _copied(visit, "snippet-openai")) == f"{said}\n"
    assert _ran([sys.executable], _copied(visit, "snippet-eft")) == f"{said}\n"
