"""Groups of checkpoints: the engines' overrides, and their numbers joined as if one engine had given them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.groups import grouped
from eft_client.dynamics.options import DynamicsOptions, planned
from eft_client.dynamics.run import run
from eft_client.report import Page
from eft_client.sync import EftClient

from .family import END, FakeFamily, peaked

MEMBERS = {"base": peaked(0.15, at=END - 1)} | {
    f"after-{n}00": peaked(0.1 * n + 0.2, at=END - 1) for n in range(1, 6)
}
FAMILY = """
name: fake
base: ./base
experts:
  after-200: {adapter: ./2, reference: base}
  after-100: {adapter: ./1, reference: base}
  after-300: ./3
  after-500: ./5
  after-400: ./4
defaults: {weights: {after-100: 1}}
"""


@pytest.fixture
def options(tmp_path: Path) -> DynamicsOptions:
    (tmp_path / "family.yaml").write_text(FAMILY)
    lines = [{"prompt": f"Q{i}?", "chosen": "abc" * (i + 1), "rejected": "de" * (i + 1)} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return DynamicsOptions(
        family=str(tmp_path / "family.yaml"),
        data=tmp_path / "data.jsonl",
        group=2,
        repeats=100,
        output=tmp_path,
    )


def experts_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    [found] = [text for text in overrides if text.startswith("experts=")]
    experts: dict[str, Any] = json.loads(found.removeprefix("experts="))
    return experts


def test_each_engine_has_some_of_the_checkpoints_in_their_order(options: DynamicsOptions) -> None:
    parts = grouped(planned(options), 2)
    assert [list(experts_of(part)) for part in parts] == [
        ["after-100", "after-200"],
        ["after-300", "after-400"],
        ["after-500"],
    ]
    assert experts_of(parts[0])["after-200"] == {"adapter": "./2", "reference": "base"}
    assert all("defaults={}" in part for part in parts)


def test_groups_give_the_numbers_that_one_engine_gives(
    options: DynamicsOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    @contextmanager
    def engine(family: Any, url: Any, overrides: tuple[str, ...], **_: Any) -> Iterator[EftClient]:
        names = list(experts_of(overrides)) if len(overrides) > 1 else list(MEMBERS)[1:]
        started.append(names)
        members = {name: MEMBERS[name] for name in ("base", *names)}
        with EftClient("http://fake/v1", transport=FakeFamily(members)) as client:
            yield client

    monkeypatch.setattr("eft_client.dynamics.run.opened", engine)
    monkeypatch.setattr("eft_client.dynamics.run.as_page", lambda *_: Page(""))
    found = []
    for group in (2, None):
        folder = tmp_path / str(group)
        run(DynamicsOptions(**(vars(options) | {"group": group, "output": folder})), Console(quiet=True))
        found.append(json.loads((folder / "summary.json").read_text())["axes"])
    assert [len(names) for names in started] == [2, 2, 1, 5]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "demo"}, "'demo' is no family file"),
        ({"checkpoints": "late=4"}, "has no checkpoint late; its experts are: after-200"),
        ({"over": ["after-100=0:1:0.5"]}, "--group starts several engines, and --over needs one"),
        ({"url": "http://fake/v1"}, "--group starts several engines, and --url needs one"),
    ],
)
def test_what_cannot_be_grouped_is_refused_by_name(
    options: DynamicsOptions, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DynamicsError) as raised:
        grouped(planned(DynamicsOptions(**(vars(options) | changes))), 2)
    assert said in str(raised.value)
