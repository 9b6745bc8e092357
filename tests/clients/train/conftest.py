"""What all trainings here begin with."""

from pathlib import Path

import pytest

from .tiny import pairs, write_base, write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reference."""
    return write_base(tmp_path_factory.mktemp("reference") / "base")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs."""
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pairs())
