"""How commands end."""

from importlib.util import find_spec

import pytest
import typer
from typer.testing import CliRunner

from eft_client.cli import add_commands
from eft_client.ending import bench_errors_in_words
from eft_client.errors import BadAnswer

app = typer.Typer()
add_commands(app)


@pytest.mark.parametrize("command", ["load", "quality"])
def test_a_lack_of_the_extra_is_said_before_anything_is_asked(command, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "eft_client.ending.find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    nowhere = ["--url", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "results")]
    done = CliRunner().invoke(app, ["bench", command, *nowhere])
    assert done.exit_code == 2
    assert done.output == "error: benchmarks need matplotlib: pip install 'eft-server[bench]'\n"
    assert not (tmp_path / "results").exists()


def test_what_a_server_said_cannot_act_on_the_terminal(capsys):
    with pytest.raises(typer.Exit) as ending, bench_errors_in_words():
        raise BadAnswer("\x1b[2Jgone")
    assert ending.value.exit_code == 2
    assert capsys.readouterr().err == "error: ␛[2Jgone\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), bench_errors_in_words():
        raise ZeroDivisionError
