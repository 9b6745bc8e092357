"""The command line: what it starts, what it prints, and how it refuses."""

import builtins
import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from eft_server import __version__
from eft_server.cli import app
from eft_server.config import bundled_families
from eft_server.errors import ConfigError
from eft_server.templates import member_templates

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
            templates=member_templates(config, report.chat_templates),
            own_tokenizers=report.own_tokenizers,
        )

    monkeypatch.setitem(sys.modules, "eft_server.engine.plan", SimpleNamespace(plan=plan))
    return calls


@pytest.fixture
def served(monkeypatch):
    """Stand in for the server: the configs and plans that it was started with."""
    calls = []
    run = lambda config, plan: calls.append((config, plan))  # noqa: E731
    monkeypatch.setitem(sys.modules, "eft_server.api.serve", SimpleNamespace(run=run))
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
    config, plan = served[0]
    assert (config.server.host, config.server.port, config.server.max_n) == ("::1", 9, 2)
    assert config.server.api_key_file == tmp_path / "elsewhere" / "keys"
    assert config.defaults.scale == 0.5
    assert planned[0][2] == ["--max-model-len", "64"]
    assert plan.options["dtype"] == "float32"


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

    monkeypatch.setitem(sys.modules, "eft_server.engine.plan", SimpleNamespace(plan=refuse))
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
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
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
    monkeypatch.setitem(sys.modules, "eft_server.engine.plan", None)
    assert isinstance(eft("check", family).exception, ModuleNotFoundError)


def test_help_names_every_command(eft):
    output = eft("--help").output
    assert all(command in output for command in ("serve", "check", "families", "version"))
