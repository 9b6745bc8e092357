"""`eft pack` and `eft vllm-args`, as they are typed."""

import json
import shlex
from pathlib import Path

from typer.testing import CliRunner, Result

from eft_server.cli import app
from eft_server.hosts.command_line import program
from eft_server.hosts.travelling import family_in


def _eft(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_pack_says_what_it_wrote_and_how_it_is_served(family_file: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    target = tmp_path / "tiny one"
    said = _eft("pack", family_file, target, "--link", "--set", f"server.api_key_file={tmp_path / 'keys'}")
    assert said.exit_code == 0, said.output
    first, keys, last = said.stdout.splitlines()
    files = [path for path in target.rglob("*") if path.is_file()]
    assert (
        first
        == f"{target}: 'tiny', {sum(f.stat().st_size for f in files) / 1e6:.2f} MB in {len(files)} files"
    )
    assert str(tmp_path / "keys") in keys
    assert shlex.split(last) == ["VLLM_PLUGINS=eft", *program(), str(target)]


def test_pack_refuses_a_directory_that_holds_something_before_it_reads_the_family(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    said = _eft("pack", "demo", tmp_path)
    assert said.exit_code != 0
    assert "holds notes.txt; name an empty or a new one" in said.stderr
    assert "importing" not in said.stderr


def test_vllm_args_gives_the_command_as_an_object_with_the_options_behind_the_dashes(
    family_file: Path,
) -> None:
    said = _eft(
        "vllm-args", family_file, "--json", "--set", "server.port=9000", "--", "--max-model-len", "256"
    )
    assert said.exit_code == 0, said.output
    line = json.loads(said.stdout)
    assert line["environment"]["VLLM_PLUGINS"] == "eft"
    options = dict(zip(line["command"], line["command"][1:], strict=False))
    assert options["--max-model-len"] == "256"
    assert options["--port"] == "9000"
    assert family_in(json.loads(options["--hf-overrides"])["eft_family"]).name == "tiny"
