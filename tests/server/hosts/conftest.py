"""A family of real checkpoints, and what `eft pack` makes of it."""

from pathlib import Path

import pytest

from eft_client.progress import Progress
from eft_server.family.load import load_config
from eft_server.hosts.pack import Packing, pack

from ...e2e.random_family import TEMPLATE, write_family


@pytest.fixture(scope="session")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def packed(family_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed") / "tiny"
    with Progress() as progress:
        pack(Packing.of(load_config(family_file), TEMPLATE), directory, progress, link=True)
    return directory


@pytest.fixture(autouse=True)
def with_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "eft")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
