"""Files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any

__all__ = ["write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a text."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON that people can read."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
