"""The command line: what it starts, what it prints, and how it refuses."""

import builtins
import json
import os
import re
import shlex
import socket
import sys
import tomllib
from contextlib import closing
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from eft_server import __version__
from eft_server.cli import app
from eft_server.errors import ConfigError
from eft_server.family.load import bundled_families
from eft_server.family.templates import member_templates

from .test_adapter import SETTINGS, pair

ROOT = Path(__file__).parents[2]


@pytest.fixture
def eft(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def family(write_family, write_checkpoint):
    """A family file whose four checkpoints are there, without weights."""
    for name in ("base", "small", "helpful", "harmless"):
        write_checkpoint(name)
    return write_family()


@pytest.fixture
def planned(monkeypatch):
    """Stand in for the engine's side: what it was asked to plan, with a plan that only the test defines."""
    calls = []

    def plan(config, report, extra_args=()):
        calls.append((config, report, list(extra_args)))
        return SimpleNamespace(
            options={"dtype": "float32"} | config.vllm,
            environment={"SOME_VARIABLE": "1"},
            templates=member_templates(config.family, report.chat_templates),
            own_tokenizers=report.own_tokenizers,
        )

    monkeypatch.setitem(
        sys.modules, "eft_server.engine.launcher.plan", SimpleNamespace(plan=plan, EnginePlan=object)
    )
    return calls


@pytest.fixture
def served(monkeypatch):
    """Stand in for the server: what it was started with, from the config and the plan on."""
    calls = []
    run = lambda *arguments: calls.append(arguments)  # noqa: E731
    monkeypatch.setitem(sys.modules, "eft_server.api.serve", SimpleNamespace(run=run))
    monkeypatch.setattr(
        "eft_server.api.edge.listener.listener_on", lambda host, port: StringIO(f"{host} {port}")
    )
    return calls


def test_the_version_is_the_packages(eft):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (
        eft("--version").output.strip() == eft("version").output.strip() == project["version"] == __version__
    )


def test_families_are_listed_by_name(eft):
    result = eft("families")
    assert result.exit_code == 0
    assert all(name in result.output for name in bundled_families())


def test_a_familys_file_is_printed_to_copy_from(eft):
    assert eft("families", "demo").output == bundled_families()["demo"].read_text()
    refused = eft("families", "nonesuch")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "error: 'nonesuch' is not a bundled family; known: demo" in refused.stderr


def test_serve_passes_flags_overrides_and_vllm_arguments_on(
    eft, family, planned, served, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "keys").write_text("first\nsecond\n")
    result = eft(
        "serve",
        family,
        "--host",
        "::1",
        "--port",
        9,
        "--api-key-file",
        "keys",
        "--set",
        "defaults.scale=0.5",
        "--set",
        "server.max_n=2",
        "--",
        "--max-model-len",
        64,
    )
    assert result.exit_code == 0, result.output
    config, plan, listener, keys, _, supervisor = served[0]
    assert (keys, listener.closed) == (("first", "second"), True)
    assert supervisor is None
    assert (config.server.host, config.server.port, config.server.max_n) == ("::1", 9, 2)
    assert config.server.api_key_file == tmp_path / "elsewhere" / "keys"
    assert config.defaults.scale == 0.5
    assert planned[0][2] == ["--max-model-len", "64"]
    assert plan.options["dtype"] == "float32"


def test_a_missing_key_file_is_refused_before_anything_is_started(eft, family, planned, served, tmp_path):
    refused = eft("serve", family, "--api-key-file", tmp_path / "nothing")
    assert (refused.exit_code, planned, served) == (2, [], [])
    assert "cannot read" in refused.stderr


def test_an_address_that_cannot_be_had_is_refused_before_anything_is_started(eft, family, planned):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        refused = eft("serve", family, "--port", port)
    assert (refused.exit_code, planned) == (2, [])
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "importing" not in refused.stderr


def test_the_stages_of_a_start_are_told_on_stderr(eft, family, planned, served):
    lines = eft("serve", family, "--host", "::1").stderr.splitlines()
    for line, stage in zip(
        lines, ("importing vLLM and PyTorch", "reading the members' configs"), strict=True
    ):
        assert re.match(rf"\[ *\d+\.\d s\] {stage}", line)


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ((), "WARNING"),
        (("--verbose",), "INFO"),
        (("--log-level", "error"), "ERROR"),
        (("--log-level", "DEBUG"), "DEBUG"),
    ],
)
def test_the_level_of_vllms_log_is_chosen(eft, family, planned, served, monkeypatch, options, level):
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    assert eft("serve", family, *options).exit_code == 0
    assert os.environ["VLLM_LOGGING_LEVEL"] == level
    assert eft("serve", family, "--log-level", "loud").exit_code == 2


def test_serve_tells_warnings_on_stderr(eft, family, planned, served, write_checkpoint):
    write_checkpoint("helpful", max_position_embeddings=32)
    assert "warning: 'helpful' reads at most 32 tokens" in eft("serve", family).stderr


def test_check_tells_sizes_vocabulary_and_options(eft, family, planned):
    result = eft("check", family)
    assert result.exit_code == 0, result.output
    weights_mb = planned[0][1].members[0].weight_bytes() / 1e6
    for text in (f"{weights_mb:.2f} MB", "22 of 32 ids", "float32", "SOME_VARIABLE", "form a family"):
        assert text in result.stdout
    assert f"{4 * weights_mb:.2f} MB" in result.stdout


def test_check_divides_by_the_gpus_that_the_options_ask_for(eft, family, planned):
    result = eft("check", family, "--set", "vllm.tensor_parallel_size=4")
    assert "Memory per GPU, over 4 GPUs" in result.stdout
    base = planned[0][1].members[0]
    assert f"{base.weight_bytes() / 4 / 1e6:.2f} MB" in result.stdout
    # Two key/value heads on four GPUs: each GPU holds one of them.
    assert f"{base.kv_bytes(1000) / 2 / 1e6:.2f} MB" in result.stdout


def test_check_counts_members_that_every_gpu_holds_whole(eft, family, planned):
    result = eft("check", family, "--set", "vllm.tensor_parallel_size=4")
    base, *others = planned[0][1].members
    assert result.stdout.count("whole") == len(others)
    assert f"{others[0].weight_bytes() / 1e6:.2f} MB" in result.stdout
    total = base.weight_bytes() / 4 + sum(member.weight_bytes() for member in others)
    assert f"{total / 1e6:.2f} MB" in result.stdout


def test_check_counts_an_adapters_low_rank_numbers_and_its_own_cache(eft, write_family, planned, family):
    lora = family.parent / "lora"
    lora.mkdir()
    save_file(pair(), lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps(SETTINGS))
    result = eft("check", write_family(experts={"helpful": {"adapter": "./lora"}}))
    row = next(line for line in result.output.splitlines() if "adapter on small" in line)
    base = next(line for line in result.output.splitlines() if "/base" in line)
    assert "256 │ 0.00 MB" in row
    assert row.split("│")[-2] == base.split("│")[-2]


def test_check_bounds_packed_weights_whose_files_are_not_here(eft, family, planned):
    config = family.parent / "base" / "config.json"
    stated = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    config.write_text(json.dumps(json.loads(config.read_text()) | stated))
    result = eft("check", family)
    assert "LlamaForCausalLM (awq)" in result.output
    assert result.output.count("up to 0.") == 2


def test_check_refuses_more_gpus_than_heads(eft, family, planned):
    result = eft("check", family, "--set", "vllm.tensor_parallel_size=3")
    assert result.exit_code == 2
    assert "error: tensor_parallel_size 3 does not divide the 4 attention heads of 'base'" in result.stderr


def test_check_still_tells_sizes_when_no_engine_can_be_planned(eft, family, monkeypatch):
    def refuse(*_):
        raise ConfigError("vLLM cannot do that [at all]")

    monkeypatch.setitem(sys.modules, "eft_server.engine.launcher.plan", SimpleNamespace(plan=refuse))
    result = eft("check", family)
    assert result.exit_code == 2
    assert "22 of 32 ids" in result.stdout
    assert "error: vLLM cannot do that [at all]" in result.stderr


def test_a_member_that_drafts_costs_nothing_more_and_another_checkpoint_does(eft, family, planned):
    for draft, count in (("helpful", 4), (str(Path(family).parent / "base"), 5)):
        result = eft("check", family, "--set", f"speculative.draft={draft}")
        assert ("(draft)" in result.stdout) == (count == 5)
        assert f"{count * planned[0][1].members[0].weight_bytes() / 1e6:.2f} MB" in result.stdout


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "neither a family file nor a bundled family"),
        (["FAMILY", "--set", "server.prot=1"], "server.prot: unknown key"),
        (["FAMILY", "--set", "base=./missing"], "there is no such directory"),
    ],
)
def test_wrong_input_ends_with_two_and_one_message(eft, family, planned, served, command, arguments, message):
    result = eft(command, *(family if argument == "FAMILY" else argument for argument in arguments))
    assert result.exit_code == 2
    *stages, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert all(line.startswith("[") for line in stages)
    assert "Traceback" not in result.output
    assert not served


def test_a_port_out_of_range_is_refused(eft, family):
    result = eft("serve", family, "--port", 70000)
    assert (result.exit_code, "server.port" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["serve", "check"])
def test_without_an_engine_the_message_says_what_to_install(eft, family, monkeypatch, command):
    without = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return without(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = eft(command, family)
    assert result.exit_code == 2
    assert "pip install 'eft-server[cuda]'" in result.stderr
    assert "'eft-server[cpu]'" in result.stderr


def test_a_module_of_our_own_that_is_missing_is_a_defect(eft, family, monkeypatch):
    monkeypatch.setitem(sys.modules, "eft_server.engine.launcher.plan", None)
    assert isinstance(eft("check", family).exception, ModuleNotFoundError)


def test_help_names_every_command(eft):
    output = eft("--help").output
    assert all(command in output for command in ("serve", "generate", "check", "families", "version"))


@pytest.mark.parametrize(
    ("command", "count"),
    [("serve", 2), ("check", 2), ("generate", 2), ("chat", 2), ("bench load", 2), ("bench quality", 2)],
)
def test_examples_in_the_help_stand_on_one_line_and_are_right(command, count):
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    examples = re.findall(rf"^ *(?:echo .* \| )?eft ({command}(?: .*)?)$", result.output, re.MULTILINE)
    assert len(examples) == count, result.output
    for example in examples:
        wanted, words = get_command(app), shlex.split(example)
        while hasattr(wanted, "commands"):
            wanted = wanted.commands[words.pop(0)]
        assert wanted.make_context(command, words).params


@pytest.fixture
def hub_settings(monkeypatch):
    """Stand in for the environment: what the commands set before anything is imported."""
    calls = []
    monkeypatch.setattr("eft_server.cli.use_hub", lambda **settings: calls.append(settings))
    return calls


@pytest.mark.parametrize("command", ["serve", "check"])
def test_hub_options_are_set_before_members_are_read(
    eft, family, planned, served, hub_settings, monkeypatch, command
):
    def read(config):
        assert hub_settings == [{"offline": True, "cache_dir": Path("cache")}]
        raise ConfigError(f"read {config.base.model} at {config.base.revision}")

    monkeypatch.setattr("eft_server.family.inspection.inspect_family", read)
    options = ("--set", "base=org/model", "--revision", "v1", "--offline", "--cache-dir", "cache")
    assert "error: read org/model at v1" in eft(command, family, *options).stderr


def test_a_download_dir_is_refused_for_a_cache_of_everything(eft, family):
    refused = eft("check", family, "--set", "vllm.download_dir=/tmp/x")
    assert (refused.exit_code, "use --cache-dir" in refused.stderr) == (2, True)


LINE = '{"custom_id": "%s", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}\n'


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(LINE % "a" + LINE % "b")
    return path


@pytest.fixture
def run(monkeypatch):
    """Stand in for the engine's run: how it ends, after writing the first pending answer."""
    from eft_server.api.in_process import Answered
    from eft_server.batch import run

    def ends(with_error=None):
        def answer(batch, config, plan, stages):
            batch.answers.write(next(batch.pending()).custom_id, Answered(200, {}))
            batch.written += 1
            if with_error:
                raise with_error

        monkeypatch.setattr(run, "run", answer)

    return ends


def test_generate_goes_on_where_it_stopped(eft, family, planned, requests, run, tmp_path):
    from eft_server.batch.run import EngineStoppedError

    command = ("generate", requests, tmp_path / "out.jsonl", "--family", family, "--weights", "helpful=0.5")
    run(KeyboardInterrupt())
    stopped = eft(*command, "--", "--max-model-len", 32)
    assert stopped.exit_code == 130
    assert "2 requests to answer, 0 already answered" in stopped.stderr
    assert (
        "interrupted: 1 answered, 0 of them with an error; run the same command again for the other 1"
        in stopped.stderr
    )
    assert planned[0][2] == ["--max-model-len", "32"]
    run(EngineStoppedError())
    finished = eft(*command)
    assert finished.exit_code == 1
    assert "1 requests to answer, 1 already answered" in finished.stderr
    assert "the engine stopped unexpectedly: 1 answered" in finished.stderr
    again = eft(*command)
    assert again.exit_code == 0
    assert "nothing to do: all 2 requests have answers" in again.stderr
    assert len(planned) == 2


def test_generate_does_not_mix_weights_unless_it_is_forced(eft, family, planned, requests, run, tmp_path):
    command = ("generate", requests, tmp_path / "out.jsonl", "--family", family)
    run(KeyboardInterrupt())
    eft(*command, "--weights", "helpful=0.5")
    refused = eft(*command, "--weights", "helpful=1")
    assert refused.exit_code == 2
    assert "eft.weights.helpful was 0.5 and is now 1.0" in refused.stderr
    run()
    forced = eft(*command, "--weights", "helpful=1", "--force")
    assert forced.exit_code == 0
    assert "1 requests to answer, 1 already answered" in forced.stderr


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (LINE % "a" + LINE % "a", (), "in.jsonl:2: custom_id 'a' is already taken"),
        ("{}", (), "in.jsonl:1: custom_id is missing"),
        (LINE % "a", ("--weights", "helpful"), "like helpful=0.7,harmless=0.3"),
        (LINE % "a", ("--weights", "helpful=7"), "eft.weights.helpful: 7.0 is out of bounds"),
        (LINE % "a", ("--model", "gpt-4"), "'gpt-4' is not served"),
    ],
)
def test_generate_refuses_before_anything_is_started(
    eft, family, planned, requests, tmp_path, text, options, message
):
    requests.write_text(text)
    refused = eft("generate", requests, tmp_path / "out.jsonl", "--family", family, *options)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not planned
