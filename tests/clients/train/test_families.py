"""Family files name their members so that they are found from where the files lie."""

import os
from pathlib import Path

import pytest

from eft_train.results.families import member_of


def test_a_relative_base_is_found_from_a_folder_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home/base", "disk/deep/runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "runs").symlink_to(tmp_path / "disk" / "deep" / "runs")
    monkeypatch.chdir(tmp_path / "home")
    folder = Path("runs/mine")
    folder.mkdir()
    named = member_of("./base", None, folder)["model"]
    assert not os.path.isabs(named)
    assert (folder.resolve() / named).resolve() == tmp_path / "home" / "base"
