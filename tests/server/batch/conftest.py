"""The application in this process over the API tests' fake engine, and files of requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eft_server.api.in_process import InProcess

from ..api.conftest import built_engine, engine  # noqa: F401 (fixtures)
from ..api.fake_engine import FakeEngine
from ..api.served import family


def a_line(custom_id: str, **body: Any) -> dict[str, Any]:
    """A chat as a line of a batch."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def write_requests(tmp_path: Path) -> Callable[..., Path]:
    """Write lines as in.jsonl: objects as JSON, texts as they are."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "in.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts))
        return path

    return write


@pytest.fixture
def server(engine: FakeEngine) -> InProcess:  # noqa: F811
    return InProcess(engine, family())
