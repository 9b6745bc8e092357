"""The command line: `eft serve`, `eft check`, `eft families`, `eft version`."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eft_server import __version__
from eft_server.config import ServerConfig, bundled_families, load_config
from eft_server.errors import ConfigError, EftError

if TYPE_CHECKING:
    from eft_server.engine.plan import EnginePlan
    from eft_server.family import FamilyReport

__all__ = ["app", "main"]

EXIT_WRONG_INPUT = 2

_ENGINE_PACKAGES = frozenset({"fastapi", "huggingface_hub", "torch", "transformers", "uvicorn", "vllm"})
_INSTALL_ADVICE = (
    "this command needs an engine: pip install 'eft-server[cuda]' for NVIDIA GPUs, 'eft-server[cpu]' for CPUs"
)

app = typer.Typer(
    name="eft",
    help="Serve emulated fine-tuning: a base model steered by the fine-tuning of smaller ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Family = Annotated[
    str, typer.Argument(metavar="FAMILY", help="A bundled family (see `eft families`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the family file; may be repeated."),
]
VllmArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- VLLM OPTIONS]", help="Options of `vllm serve`, after a bare --."),
]


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """The options before any command."""


@app.command()
def version() -> None:
    """Print the version."""
    _print_version(True)


@app.command()
def serve(  # noqa: PLR0913 (one for each option)
    family: Family,
    vllm_arguments: VllmArguments = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File of accepted API keys, one a line.")] = None,
    overrides: Overrides = None,
) -> None:
    """Start the server."""
    with _errors_in_words():
        flags: dict[str, Any] = {"host": host, "port": port}
        # A path on the command line counts from here; one in the family file counts from that file.
        flags["api_key_file"] = str(api_key_file.absolute()) if api_key_file else None
        given = [f"server.{key}={json.dumps(v)}" for key, v in flags.items() if v is not None]
        config = load_config(family, [*(overrides or ()), *given])
        report = _inspect(config)
        for warning in report.warnings:
            typer.echo(f"warning: {warning}", err=True)
        plan = _plan(config, report, vllm_arguments or ())
        from eft_server.api.serve import run

        run(config, plan)


@app.command()
def check(family: Family, vllm_arguments: VllmArguments = None, overrides: Overrides = None) -> None:
    """Say whether the members form a family, what they cost in memory, and what vLLM will be given.

    Reads configs and tokenizers only, no weights. Sizes are per GPU where the options spread the family over
    several (--set vllm.tensor_parallel_size=2).
    """
    from_vllm_to_stderr = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    for name, value in from_vllm_to_stderr.items():
        os.environ.setdefault(name, value)
    console = Console()
    with _errors_in_words():
        config = load_config(family, overrides or ())
        report = _inspect(config)
        from eft_server.check import print_options, print_prompts, print_report

        try:
            plan = _plan(config, report, vllm_arguments or ())
        except EftError:
            print_report(console, report, {})
            raise
        print_report(console, report, plan.options)
        print_prompts(console, config, plan.templates, plan.own_tokenizers)
        print_options(console, plan.options, plan.environment)
        typer.echo(f"{config.name}: the members form a family")


@app.command()
def families(
    name: Annotated[str | None, typer.Argument(help="Print this family's file, to copy from.")] = None,
) -> None:
    """List the bundled families."""
    with _errors_in_words():
        bundled = bundled_families()
        if name is None:
            Console().print(_family_table(bundled))
        elif name in bundled:
            typer.echo(bundled[name].read_text(encoding="utf-8"), nl=False)
        else:
            raise ConfigError(f"{name[:200]!r} is not a bundled family; known: {', '.join(bundled)}")


def _family_table(bundled: dict[str, Path]) -> Table:
    table = Table("Family", "Base", "Experts", "Description")
    for name in bundled:
        config = load_config(name)
        base = os.path.basename(config.base.model)
        experts = ", ".join(os.path.basename(expert.source) for expert in config.experts.values())
        table.add_row(*map(Text, (name, base, experts, config.description)))
    return table


def _inspect(config: ServerConfig) -> "FamilyReport":
    from eft_server.family import inspect_family

    return inspect_family(config)


def _plan(config: ServerConfig, report: "FamilyReport", vllm_arguments: Sequence[str]) -> "EnginePlan":
    from eft_server.engine.plan import plan

    planned = plan(config, report, vllm_arguments)
    report.require_divisible(int(planned.options.get("tensor_parallel_size") or 1))
    return planned


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Our errors as one message on stderr and exit code 2; a defect keeps its traceback."""
    try:
        yield
    except EftError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _ENGINE_PACKAGES:
            raise
        typer.echo(f"error: {_INSTALL_ADVICE} ({error})", err=True)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
