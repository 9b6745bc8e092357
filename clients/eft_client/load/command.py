"""The command `eft bench load`: from options to a folder of results; the `bench` extra is imported late."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eft_client.exits import EXIT_FAILED, errors_in_words, fail, require_bench
from eft_client.settings import DEFAULT_URL

__all__ = ["load"]

_TARGETS, _REQUESTS, _LOAD, _REPORT = "Targets to compare", "Requests", "Load", "Report"


def load(  # noqa: PLR0913 (one for each option)
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME=MODEL[@URL] [expert=number …]'",
            help="A setting to measure; may be repeated. Default: the first model that the server lists.",
            rich_help_panel=_TARGETS,
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file with a list of settings.", rich_help_panel=_TARGETS)
    ] = None,
    url: Annotated[
        str, typer.Option(help="Server of the settings that name none.", rich_help_panel=_TARGETS)
    ] = DEFAULT_URL,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME=SHARE*SETTING …'",
            help="A mix as a target: each request draws one of these settings; may be repeated.",
            rich_help_panel=_TARGETS,
        ),
    ] = None,
    parts: Annotated[
        bool, typer.Option(help="Measure the settings of a mix by themselves, too.", rich_help_panel=_TARGETS)
    ] = True,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The target that the others are compared with. Default: the first.",
            rich_help_panel=_TARGETS,
        ),
    ] = None,
    endpoint: Annotated[
        Literal["chat", "completions"],
        typer.Option(help="OpenAI endpoint to use.", rich_help_panel=_REQUESTS),
    ] = "chat",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts: .jsonl with {"prompt"} or {"messages"} (and "max_tokens") on each line, or .json in '
            "ShareGPT's form. Default: random words.",
            rich_help_panel=_REQUESTS,
        ),
    ] = None,
    distinct: Annotated[
        bool,
        typer.Option(
            "--distinct",
            help="Begin each prompt of the file with different random words, to bypass prefix caches.",
            rich_help_panel=_REQUESTS,
        ),
    ] = False,
    input_tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Tokens per synthetic prompt.", rich_help_panel=_REQUESTS)
    ] = 64,
    input_spread: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Spread of the prompt lengths: 0.5 is uniform between 0.5 and 1.5 times --input-tokens.",
            rich_help_panel=_REQUESTS,
        ),
    ] = 0.0,
    output_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            max=1 << 20,
            help="max_tokens of the answers. vLLM reaches it with --body '{\"ignore_eos\": true}'.",
            rich_help_panel=_REQUESTS,
        ),
    ] = 32,
    output_spread: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Likewise for --output-tokens, with synthetic prompts.",
            rich_help_panel=_REQUESTS,
        ),
    ] = 0.0,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature. Default: the server's.", rich_help_panel=_REQUESTS),
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Additional fields of every request.", rich_help_panel=_REQUESTS),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Closed loop: number of requests at once; may be repeated. Default: 4.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.001,
            max=100_000,
            help="Open loop: Poisson arrivals, requests per second; may be repeated.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Open loop: file with arrival times in seconds, one per line.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Requests per round. Default: 64, or all arrivals.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=86_400,
            metavar="SECONDS",
            help="Duration of a round, in place of --requests.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Rounds of each target under each load; targets take turns.",
            rich_help_panel=_LOAD,
        ),
    ] = 3,
    warm_up: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="Uncounted requests to each target before the first round.",
            rich_help_panel=_LOAD,
        ),
    ] = 4,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.01, max=86_400, metavar="SECONDS", help="Timeout of a whole request.", rich_help_panel=_LOAD
        ),
    ] = 600.0,
    seed: Annotated[
        int, typer.Option(help="Seed of prompts, lengths, arrivals and mixes.", rich_help_panel=_LOAD)
    ] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE=MS",
            help="Count requests within a limit on ttft_ms, tpot_ms or e2e_ms; may be repeated.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Parent of the run's folder.", rich_help_panel=_REPORT)
    ] = Path("bench-results"),
    again: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RAW.JSONL",
            help="Remake the report of an earlier run from its raw.jsonl, in the same folder; no request is sent.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
) -> None:
    """Measure how fast servers answer: latencies, throughput and goodput, several targets in one run.

    Works with any OpenAI-compatible server. Targets take turns and are
    compared as ratios to the baseline:

    eft bench load --setting 'steered=demo helpful=0.7' --setting base=demo/base

    eft bench load --url http://127.0.0.1:8001/v1 --concurrency 8 --rate 4

    A run writes raw.jsonl (time stamps of every request), summary.json and
    report.html. Ctrl-C ends it and reports what was measured.
    """
    given = dict(locals())
    with errors_in_words():
        _refuse_what_has_no_effect(given)
        code = _remake(again, baseline, goodput or []) if again else _measure(given)
    raise typer.Exit(code)


def _refuse_what_has_no_effect(given: dict[str, Any]) -> None:
    from eft_client.load.errors import LoadError

    defaults = {name: option.default for name, option in signature(load).parameters.items()}
    changed = [name for name, value in given.items() if value != defaults[name]]
    if given["again"]:
        idle = [name for name in changed if name not in ("again", "baseline", "goodput")]
        why = "--from sends no request, so it takes only --baseline and --goodput"
    else:
        made_up = ("input_tokens", "input_spread", "output_spread") if given["prompts"] else ("distinct",)
        idle = [name for name in changed if name in made_up]
        why = "prompts from a file have their own lengths" if given["prompts"] else "it is for --prompts FILE"
    if idle:
        raise LoadError(f"{', '.join('--' + name.replace('_', '-') for name in idle)}: no effect here: {why}")


def _measure(given: dict[str, Any]) -> int:
    from eft_client.load.errors import NothingAnswered

    options = _options(given)
    require_bench()
    from eft_client.load.session import measure

    try:
        return measure(options, given["goodput"] or [], given["output"])
    except NothingAnswered as error:
        raise fail(error, EXIT_FAILED) from error


def _remake(raw: Path, baseline: str | None, goodput: Sequence[str]) -> int:
    require_bench()
    from eft_client.load.session import remake

    return remake(raw, baseline, list(goodput))


def _options(given: dict[str, Any]) -> Any:
    """From the command line to a run's options."""
    from eft_client.load.options import LoadOptions
    from eft_client.load.targets import targets
    from eft_client.settings import Setting, parse_setting, read_settings

    url = given["url"]
    found = [parse_setting(text, url=url) for text in given["setting"] or ()]
    found += read_settings(given["settings"], url=url) if given["settings"] else []
    measured = targets(found or [Setting("server", url=url)], given["mix"] or (), parts_too=given["parts"])
    return LoadOptions(
        targets=tuple(measured),
        baseline=given["baseline"] or measured[0].name,
        loads=tuple(_loads(given)),
        prompts=_prompts(given),
        max_tokens=given["output_tokens"],
        body=_body(given["body"]),
        duration_s=given["duration"],
        timeout_s=given["timeout"],
        **{key: given[key] for key in ("requests", "repeats", "warm_up", "endpoint", "temperature", "seed")},
    )


def _loads(given: dict[str, Any]) -> list[Any]:
    from eft_client.load.arrivals import ClosedLoop, OpenLoop, read_trace

    found: list[Any] = [ClosedLoop(count) for count in given["concurrency"] or ()]
    found += [OpenLoop(rate) for rate in given["rate"] or ()]
    found += [read_trace(given["arrivals"])] if given["arrivals"] else []
    return found or [ClosedLoop(4)]


def _prompts(given: dict[str, Any]) -> Any:
    from eft_client.load.prompts import Lengths, Synthetic, read_prompts

    if given["prompts"]:
        return read_prompts(given["prompts"], chat=given["endpoint"] == "chat", distinct=given["distinct"])
    return Synthetic(
        input_tokens=Lengths(mean=given["input_tokens"], spread=given["input_spread"]),
        output_tokens=Lengths(mean=given["output_tokens"], spread=given["output_spread"]),
    )


def _body(text: str | None) -> dict[str, Any]:
    from eft_client.jsonl import json_value
    from eft_client.load.errors import LoadError

    try:
        body = json_value(text or "{}")
    except ValueError as error:
        raise LoadError(f"--body: {error}") from None
    if not isinstance(body, dict):
        raise LoadError(f'--body: expected an object such as {{"ignore_eos": true}}, not {text!r}')
    return body
