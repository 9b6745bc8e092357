"""How commands end."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from eft_client import exits
from eft_client.cli import add_commands
from eft_client.errors import BadAnswer, TimedOut
from eft_client.exits import errors_in_words, output_in_words

app = typer.Typer()
add_commands(app)


@pytest.mark.parametrize("command", [["load"], ["quality", "--setting", "m"], ["load", "--from"]])
def test_a_lack_of_the_extra_is_said_before_anything_is_asked(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    nowhere = ["--url", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "results")]
    given = [str(tmp_path / "raw.jsonl")] if command[-1] == "--from" else nowhere
    done = CliRunner().invoke(app, ["bench", *command, *given])
    assert done.exit_code == 2
    assert done.output == (
        "error: benchmarks need matplotlib: pip install 'eft-server[bench]', or in a clone: make install-bench\n"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quality"], "no setting: give --setting"),
        (["quality", "--setting", "m", "--prompts", "FILE"], "exactly one of prompt and messages"),
        (["quality", "--prompts", "FILE", "--print-prompts"], "exactly one of prompt and messages"),
        (["load", "--prompts", "FILE"], "line 1: expected"),
        (["load", "--setting", "m helpful"], "is not of the form expert=number"),
    ],
)
def test_what_is_given_is_checked_without_the_plots(arguments, told, monkeypatch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = [str(path) if word == "FILE" else word for word in arguments]
    done = CliRunner().invoke(app, ["bench", *given, "--url", "http://127.0.0.1:9/v1"])
    assert (done.exit_code, told in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    "arguments", [["quality", "--print-prompts"], ["quality", "--help"], ["load", "--help"], ["--help"]]
)
def test_prompts_and_help_are_printed_without_anything_of_the_extra(arguments):
    code = (
        "import sys, typer; sys.modules |= dict.fromkeys(('jinja2', 'matplotlib', 'numpy', 'regex'))\n"
        f"sys.argv = ['eft', 'bench', *{arguments!r}]\n"
        "from eft_client.cli import add_commands; app = typer.Typer(); add_commands(app); app()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 5


def test_the_extra_s_packages_are_those_that_are_looked_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {re.split("[<>=]", needed)[0] for needed in project["optional-dependencies"]["bench"]}
    assert extra == set(exits._BENCH_PACKAGES)


def test_what_a_server_said_cannot_act_on_the_terminal(capsys):
    with pytest.raises(typer.Exit) as ending, errors_in_words():
        raise BadAnswer("\x1b[2Jgone")
    assert ending.value.exit_code == 2
    assert capsys.readouterr().err == "error: ␛[2Jgone\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), errors_in_words():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "option",
    [
        "--seed -1",
        "--timeout-s inf",
        "--timeout-s nan",
        "--vocabulary 99999999999999999999",
        "--temperature nan",
        "--n 0",
        "--max-tokens 0",
        "--per-request 0",
        "--concurrency 0",
        "--judge-samples 0",
        "--repeats 1e9",
    ],
)
def test_a_number_that_cannot_be_is_refused_in_words(option, tmp_path):
    nowhere = ["--url", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "results"), "--setting", "m"]
    done = CliRunner().invoke(app, ["bench", "quality", *option.split(), *nowhere], env={"COLUMNS": "200"})
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit)
    assert option.split()[0].strip("-").replace("-", "_") in done.output.replace("-", "_")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("arguments", ["bench quality --print-prompts", "families", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_told_in_one_line(arguments, unbuffered):
    command = [sys.executable, "-c", "from eft_server.cli import main; main()", *arguments.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    told = "error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_reader_that_has_enough_ends_it_quietly():
    command = [
        sys.executable,
        "-c",
        "from eft_server.cli import main; main()",
        "bench",
        "quality",
        "--print-prompts",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 1)


def test_an_error_of_another_kind_stays_what_it_is():
    for error in (FileNotFoundError(2, "no"), TimedOut("no"), SystemExit(3)):
        with pytest.raises(type(error)), output_in_words():
            raise error
