"""The options of a vLLM that is given a family: those that act, and those that are refused by name."""

import json
import shlex
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from eft_server.engine.launcher.plan import plan
from eft_server.errors import ConfigError
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config
from eft_server.hosts.command_line import CommandLine, command_line


def _config(*arguments: str, context: UsageContext = UsageContext.OPENAI_API_SERVER) -> VllmConfig:
    """What vLLM makes of a command line."""
    parser = make_arg_parser(FlexibleArgumentParser())
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments)))
    return args.create_engine_config(usage_context=context)


@pytest.fixture(scope="module")
def line(family_file: Path) -> CommandLine:
    config = load_config(family_file)
    return command_line(config, plan(config, inspect_family(config)))


def _after_program(line: CommandLine) -> list[str]:
    return list(line.arguments[line.arguments.index("--model") :])


def test_a_packed_directory_is_planned_as_eft_serve_plans_its_family(family_file: Path, packed: Path) -> None:
    config = load_config(family_file)
    wanted = AsyncEngineArgs(**plan(config, inspect_family(config)).options).create_engine_config()
    given = _config("--model", str(packed))
    assert given.model_config.served_model_name == "tiny"
    assert given.model_config.model == str(packed.resolve() / "members" / "base")
    assert given.model_config.max_logprobs == wanted.model_config.max_logprobs
    assert given.model_config.max_model_len == wanted.model_config.max_model_len
    assert given.scheduler_config.scheduler_cls == wanted.scheduler_config.scheduler_cls
    assert given.parallel_config.worker_cls == wanted.parallel_config.worker_cls
    assert given.structured_outputs_config == wanted.structured_outputs_config
    assert given.cache_config.kv_cache_memory_bytes == wanted.cache_config.kv_cache_memory_bytes
    names = [member["name"] for member in given.model_config.hf_config.eft["members"]]
    assert names == ["small", "helpful", "harmless", "broken"]


def test_the_printed_line_is_read_by_a_shell_and_accepted_by_vllm(line: CommandLine) -> None:
    words = shlex.split(line.quoted().replace("\\\n", ""))
    assert words[: len(line.environment)] == [f"{k}={v}" for k, v in line.environment.items()]
    assert words[len(line.environment) :] == list(line.arguments)
    assert json.loads(line.as_json())["command"] == list(line.arguments)
    config = _config(*_after_program(line))
    assert config.model_config.architectures == ["EftForCausalLM"]
    assert config.model_config.hf_config.eft_family["name"] == "tiny"


def test_options_of_the_host_act(packed: Path, line: CommandLine) -> None:
    given = _config("--model", str(packed), "--max-model-len", "300", "--served-model-name", "prod", "spare")
    assert given.model_config.max_model_len == 300
    assert given.model_config.hf_config.eft_family["name"] == "prod"
    assert "spare" in given.model_config.hf_config.eft_family["aliases"]
    longer = _config(*_after_program(line), "--max-model-len", "300", "--served-model-name", "prod")
    assert longer.model_config.max_model_len == 300
    assert longer.model_config.served_model_name == "prod"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--enable-lora",), "'enable_lora' cannot be set here"),
        (("--scheduler-cls", "vllm.v1.core.sched.scheduler.Scheduler"), "'scheduler_cls' cannot be set here"),
        (("--hf-overrides", '{"architectures": ["LlamaForCausalLM"]}'), "'hf_overrides' cannot be set here"),
        (("--generation-config", "auto"), None),
        (("--max-logprobs", "7"), "use server.max_logprobs"),
        (("--max-model-len", "5000"), "max_model_len 5000 is more than member"),
        (("--pipeline-parallel-size", "2"), "must be 1"),
        (
            ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'),
            "use the section speculative",
        ),
        (("--structured-outputs-config", '{"backend": "guidance"}'), "the server chooses the backend"),
        (("--data-parallel-rank", "0"), "run on one machine"),
    ],
)
def test_options_that_a_family_cannot_have_are_refused_by_name(
    packed: Path, option: tuple[str, ...], message: str | None
) -> None:
    if message is None:
        assert _config("--model", str(packed), *option).model_config.generation_config == "vllm"
        return
    with pytest.raises(ConfigError, match=message):
        _config("--model", str(packed), *option)


@pytest.mark.parametrize(
    ("environment", "context", "message"),
    [
        ({"VLLM_PLUGINS": None}, UsageContext.OPENAI_API_SERVER, "set VLLM_PLUGINS=eft"),
        ({"VLLM_USE_RUST_FRONTEND": "1"}, UsageContext.OPENAI_API_SERVER, "Rust frontend has no plugins"),
        ({}, UsageContext.OPENAI_BATCH_RUNNER, "use eft generate"),
    ],
)
def test_a_host_that_would_serve_a_family_without_weights_is_refused(
    packed: Path,
    environment: dict[str, str | None],
    context: UsageContext,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        _config("--model", str(packed), context=context)


def test_several_processes_for_http_are_refused(packed: Path) -> None:
    args: Any = AsyncEngineArgs(model=str(packed))
    args._api_process_count = 2
    with pytest.raises(ConfigError, match="one process for HTTP"):
        args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def test_an_ordinary_model_is_left_as_it_is(family_file: Path) -> None:
    config = _config("--model", str(family_file.parent / "base"), "--max-model-len", "64")
    assert config.model_config.architectures == ["LlamaForCausalLM"]
    assert not hasattr(config.model_config.hf_config, "eft_family")


def test_hosts_find_vllms_types_in_the_arguments(packed: Path) -> None:
    """Ray Serve LLM gives vLLM's frontend the arguments that the engine was started with."""
    args = AsyncEngineArgs(model=str(packed))
    usual = vars(AsyncEngineArgs(model=str(packed)))
    args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    of_another_type = {
        name: type(value).__name__
        for name, value in vars(args).items()
        if is_dataclass(usual.get(name)) and not isinstance(value, type(usual[name]))
    }
    assert of_another_type == {}
    assert args.structured_outputs_config.reasoning_parser == ""
