"""The command line: `eft serve`, `eft generate`, `eft check`, `eft families`, `eft version`, and others' commands."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eft_client.cli import add_commands
from eft_client.exits import EXIT_FAILED, EXIT_INTERRUPTED, output_in_words
from eft_server import __version__
from eft_server.environment import LogLevel, log_vllm, use_hub
from eft_server.errors import ConfigError, EftError
from eft_server.exits import ended_quickly, errors_in_words
from eft_server.family.file import ServerConfig
from eft_server.family.load import bundled_families, load_config
from eft_train.command import train

if TYPE_CHECKING:
    import socket

    from eft_server.batch.run import Batch
    from eft_server.engine.launcher.plan import EnginePlan
    from eft_server.engine.launcher.stages import Stages
    from eft_server.family.inspection import FamilyReport

__all__ = ["app", "main"]

_BEGAN_S = time.time()

app = typer.Typer(
    name="eft",
    help="Serve emulated fine-tuning: a base model steered by the fine-tuning of smaller ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_commands(app)
app.command()(train)

Family = Annotated[
    str, typer.Argument(metavar="FAMILY", help="A bundled family (see `eft families`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the family file; may be repeated."),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="Hub revision of the base: a branch, tag or commit. For other members: --set KEY.revision=…"
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Do not contact the model hub; use only its cache.")]
CacheDir = Annotated[
    Path | None, typer.Option(help="The hub's cache folder. Default: $HF_HUB_CACHE or $HF_HOME/hub.")
]
Level = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level",
        help="Lowest level of vLLM's log to show. Default: $VLLM_LOGGING_LEVEL, or warning.",
        case_sensitive=False,
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Same as --log-level info.")]
VllmArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- VLLM OPTIONS]", help="Options of `vllm serve`, after a separate --."),
]


def main() -> None:
    """Run the command line."""
    with ended_quickly(), output_in_words():
        app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options that come before any command."""


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
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of accepted API keys, one per line.")
    ] = None,
    playground: Annotated[
        bool | None,
        typer.Option(
            "--playground/--no-playground",
            help="Serve the page at /playground. Default: the family file's server.playground.",
            show_default=False,
        ),
    ] = None,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise", help="Start the server again if it dies; the port answers 503 meanwhile."
        ),
    ] = False,
    overrides: Overrides = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    log_level: Level = None,
    verbose: Verbose = False,
) -> None:
    """Start the server.

    Progress is shown on stderr. With VLLM_WORKER_MULTIPROC_METHOD=spawn in the
    environment, vLLM starts its processes in its usual way, which takes two or
    three times as long.

    eft serve demo

    eft serve mine.yaml --port 9000 -- --max-model-len 4096

    SIGTERM or Ctrl-C: new requests get 503, those under way have server.drain_s
    to finish, and what is left then ends with an error. A second one ends all
    at once.
    """
    with errors_in_words(), suppress(KeyboardInterrupt):
        use_hub(offline=offline, cache_dir=cache_dir)
        log_vllm(LogLevel.INFO if verbose and log_level is None else log_level)
        flags: dict[str, Any] = {"host": host, "port": port, "playground": playground}
        # A path on the command line is relative to the working directory; one in the family file, to that file.
        flags["api_key_file"] = str(api_key_file.absolute()) if api_key_file else None
        given = [f"server.{key}={json.dumps(v)}" for key, v in flags.items() if v is not None]
        config = load_config(family, [*(overrides or ()), *given], revision=revision)
        from eft_server.api.edge.keys import read_api_keys

        api_keys = read_api_keys(config.server.api_key_file)
        if supervise:
            raise typer.Exit(_supervised(config))
        listener, supervisor = _sockets(config)
        with closing(listener), _start() as stages:
            plan = _planned(config, vllm_arguments or (), stages)
            from eft_server.api.edge.signals import interrupted_by_signals
            from eft_server.api.serve import run

            with interrupted_by_signals():
                run(config, plan, listener, api_keys, stages, supervisor)


def _sockets(config: ServerConfig) -> "tuple[socket.socket, socket.socket | None]":
    """The socket to listen on, and the supervisor's if there is one, which has the first already."""
    from eft_server.api.edge.listener import listener_on
    from eft_server.api.supervise import INHERITED, inherited

    if INHERITED in os.environ:
        return inherited()
    return listener_on(config.server.host, config.server.port), None


def _supervised(config: ServerConfig) -> int:
    """Run this very command again and again, but for the option."""
    from eft_server.api.edge.listener import listener_on
    from eft_server.api.supervise import supervise

    arguments = [argument for argument in sys.argv[1:] if argument != "--supervise"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "eft_server",
        *arguments,
    ]  # -P: no modules of the working directory.
    with closing(listener_on(config.server.host, config.server.port)) as listener:
        return supervise(listener, command)


@contextmanager
def _start() -> Iterator["Stages"]:
    """Show a start, which a signal ends at once; once the engine runs, it has to be stopped instead."""
    from eft_server.api.edge.signals import ended_by_signals, raise_if_interrupted
    from eft_server.engine.launcher.stages import Stages

    with ended_by_signals(), Stages(began_s=_BEGAN_S, may_go_on=raise_if_interrupted) as stages:
        from eft_server.engine.launcher import fork_server

        stages.begin("importing vLLM and PyTorch")
        fork_server.start()
        yield stages


def _planned(config: ServerConfig, vllm_arguments: Sequence[str], stages: "Stages") -> "EnginePlan":
    """Plan how the engine is started, with the start's warnings."""
    stages.begin("reading the members' configs and tokenizers")
    report = _inspect(config)
    for warning in report.warnings:
        stages.show(f"warning: {warning}")
    return _plan(config, report, vllm_arguments)


@app.command()
def generate(  # noqa: PLR0913 (one for each option)
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests in OpenAI's batch format, one per line.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Answers; if it exists, the run resumes.")],
    family: Annotated[
        str, typer.Option(metavar="FAMILY", help="A bundled family (see `eft families`) or a YAML file.")
    ],
    vllm_arguments: VllmArguments = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="EXPERT=NUMBER,…", help="Weights for requests without behaviour fields."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Scale for those requests.")] = None,
    model: Annotated[str | None, typer.Option(help="Model or alias for requests that name none.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume OUT even if it was made with other settings.")
    ] = False,
    overrides: Overrides = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
    log_level: Level = None,
    verbose: Verbose = False,
) -> None:
    """Answer a file of requests without a server; another run resumes where the last one stopped.

    eft generate in.jsonl out.jsonl --family demo --weights helpful=0.8

    eft generate in.jsonl out.jsonl --family mine.yaml -- --max-model-len 4096
    """
    with errors_in_words():
        log_vllm(LogLevel.INFO if verbose and log_level is None else log_level)
        use_hub(offline=offline, cache_dir=cache_dir)
        config = load_config(family, overrides or (), revision=revision)
        with _start() as stages:
            from eft_server.batch.requests import Defaults, parse_weights
            from eft_server.batch.run import Batch

            given = None if weights is None else parse_weights(weights)
            defaults = Defaults.checked(config, model, given, scale)
            batch = Batch.opened(config, (source, target), defaults, force=force)
            with batch.answers:
                status = _run_batch(batch, config, vllm_arguments or (), stages)
    raise typer.Exit(status)


def _run_batch(batch: "Batch", config: ServerConfig, vllm_arguments: Sequence[str], stages: "Stages") -> int:
    """Answer the remaining requests, report the result and return the exit status."""
    from eft_server.api.edge.signals import interrupted_by_signals
    from eft_server.batch.run import EngineStoppedError, run

    if not batch.left:
        stages.end(f"nothing to do: all {batch.total:,} requests have answers")
        return 0
    stages.show(f"{batch.left:,} requests to answer, {batch.skipped:,} already answered")
    plan = _planned(config, vllm_arguments, stages)
    try:
        with interrupted_by_signals():
            run(batch, config, plan, stages)
    except KeyboardInterrupt:
        status, end = EXIT_INTERRUPTED, "interrupted: "
    except EngineStoppedError:
        status, end = EXIT_FAILED, "the engine stopped unexpectedly: "
    else:
        status, end = 0, ""
    rest = f"; run the same command again for the other {batch.left:,}" if batch.left else ""
    typer.echo(f"{end}{batch.written:,} answered, {batch.refused:,} of them with an error{rest}", err=True)
    return status


@app.command()
def check(  # noqa: PLR0913 (one for each option)
    family: Family,
    vllm_arguments: VllmArguments = None,
    overrides: Overrides = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Check that the members form a family; show the memory they need and the options that vLLM gets.

    Reads configs and tokenizers, but no weights. Sizes are per GPU if the family
    is spread over several.

    eft check mine.yaml

    eft check qwen25-7b --set vllm.tensor_parallel_size=2
    """
    log_vllm(None)
    console = Console()
    with errors_in_words():
        use_hub(offline=offline, cache_dir=cache_dir)
        config = load_config(family, overrides or (), revision=revision)
        with _start() as stages:
            stages.begin("reading the members' configs and tokenizers")
            report = _inspect(config)
            from eft_server.engine.launcher.step_memory import step_memory
            from eft_server.family.tables import (
                print_options,
                print_prompts,
                print_report,
                print_sampling,
                print_step,
            )

            try:
                plan = _plan(config, report, vllm_arguments or ())
            except EftError:
                print_report(console, report, {})
                raise
        print_report(console, report, plan.options)
        print_step(console, step_memory(plan.options, report))
        print_sampling(console, config, plan.options)
        print_prompts(console, config, plan.templates, plan.own_tokenizers)
        print_options(console, plan.options, plan.environment)
        typer.echo(f"{config.name}: the members form a family")


@app.command("vllm-args")
def vllm_args(  # noqa: PLR0913 (one for each option)
    family: Family,
    vllm_arguments: VllmArguments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object with command and environment, for a manifest.")
    ] = False,
    overrides: Overrides = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Print the command with which plain `vllm serve` serves a family, as `eft serve` would.

    The line is for this machine: its device, its memory, and the members' places
    here. Options may be added or changed; those that a family cannot have are
    refused by name when vLLM starts. For other machines see `eft pack`.

    eft vllm-args demo

    eft vllm-args mine.yaml --json -- --max-model-len 4096
    """
    log_vllm(None)
    with errors_in_words():
        use_hub(offline=offline, cache_dir=cache_dir)
        config = load_config(family, overrides or (), revision=revision)
        with _start() as stages:
            plan = _planned(config, vllm_arguments or (), stages)
            from eft_server.hosts.command_line import command_line

            line = command_line(config, plan)
        typer.echo(line.as_json() if as_json else line.quoted())


@app.command()
def pack(  # noqa: PLR0913 (one for each option)
    family: Family,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    link: Annotated[
        bool,
        typer.Option(
            "--link/--copy",
            help="Hard links to the members' files, which takes no room but the same file system; or copies.",
        ),
    ] = False,
    overrides: Overrides = None,
    revision: Revision = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write a family into one directory, which plain `vllm serve DIR` loads as it stands.

    The directory holds the members, the family file and what other programs look
    for in a model. It works wherever it is copied or mounted, and on other devices
    than this one's: VLLM_PLUGINS=eft vllm serve DIR. No API keys go into it.

    eft pack mine.yaml ./mine

    eft pack qwen25-7b /models/steered --set vllm.max_model_len=8192
    """
    log_vllm(None)
    with errors_in_words():
        use_hub(offline=offline, cache_dir=cache_dir)
        config = load_config(family, overrides or (), revision=revision)
        from eft_client.progress import Progress
        from eft_server.hosts.command_line import program
        from eft_server.hosts.pack import Packing, require_free
        from eft_server.hosts.pack import pack as write
        from eft_server.sizes import in_words

        require_free(directory)
        with _start() as stages:
            planned = _planned(config, (), stages)
            stages.begin("collecting the members' files")
            packing = Packing.of(config, planned.chat_template)
        with Progress() as progress:
            write(packing, directory, progress, link=link)
        files = len(packing.files) + len(packing.texts)
        typer.echo(f"{directory}: {config.name!r}, {in_words(packing.size_bytes)} in {files} files")
        if config.server.api_key_file is not None:
            typer.echo(
                f"  its API keys stay in {config.server.api_key_file}, which has to be there when it is served"
            )
        typer.echo(f"  VLLM_PLUGINS=eft {shlex.join((*program(), str(directory)))}")


@app.command()
def families(
    name: Annotated[str | None, typer.Argument(help="Print this family's file, as a template.")] = None,
) -> None:
    """List the bundled families."""
    with errors_in_words():
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
        experts = ", ".join(config.experts)
        table.add_row(*map(Text, (name, base, experts, config.description)))
    return table


def _inspect(config: ServerConfig) -> "FamilyReport":
    from eft_server.family.inspection import inspect_family

    return inspect_family(config)


def _plan(config: ServerConfig, report: "FamilyReport", vllm_arguments: Sequence[str]) -> "EnginePlan":
    from eft_server.engine.launcher.plan import plan

    planned = plan(config, report, vllm_arguments)
    report.require_divisible(int(planned.options.get("tensor_parallel_size") or 1))
    return planned
