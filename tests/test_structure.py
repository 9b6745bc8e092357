"""The packages stay as they are laid out: folders that can be taken in at a glance, names that mean one thing."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ROOT / "server" / "eft_server",
    *(ROOT / "clients" / name for name in ("eft_client", "eft_demo", "eft_train")),
]
MOST_MODULES = 16


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_folder_has_more_modules_than_can_be_taken_in(package: Path) -> None:
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in package.rglob("*.py"))
    assert {name: count for name, count in folders.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_two_classes_have_one_name(package: Path) -> None:
    named = Counter(
        node.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in named.items() if count > 1} == set()
