"""The client's commands, from `eft chat` to `eft probe`, which the server's command line adds to its own."""

from pathlib import Path
from typing import Annotated

import typer

from eft_client.dynamics.command import dynamics
from eft_client.errors import EftError
from eft_client.exits import (
    EXIT_WRONG_INPUT,
    errors_in_words,
    fail,
    require_bench,
    resumed_by_running_again,
)
from eft_client.load.command import load
from eft_client.probe.command import probe
from eft_client.settings import DEFAULT_URL, api_key_of

__all__ = ["add_commands"]

_PROMPTS, _SETTINGS, _REQUESTS = "Prompts and samples", "Settings to compare", "Requests"
_JUDGES, _REPORT = "Judges and measures", "Report"

bench = typer.Typer(
    name="bench",
    help="Measure how fast servers are, and what their weights do.",
    no_args_is_help=True,
)
bench.command()(load)


def add_commands(app: typer.Typer) -> None:
    """Put the clients' commands beside those that an application has."""
    app.command()(chat)
    app.command()(dynamics)
    app.command()(probe)
    app.add_typer(bench)


def chat(  # noqa: PLR0913 (one for each option)
    url: Annotated[
        str, typer.Option(help="Base URL of an EFT server, or of any OpenAI-compatible one.")
    ] = DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(help="Model, alias or member to use. Default: the first that the server lists."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="EXPERT=NUMBER,…", help="Weights of the experts. Default: the model's."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on all weights.")] = None,
    amplify: Annotated[float | None, typer.Option(help="Factor on the up-scaling delta.")] = None,
    filter: Annotated[  # noqa: A002 (the option's name)
        str | None,
        typer.Option(
            metavar="KIND:TOP_P",
            help="Let the small models choose only within a nucleus, such as expert:0.9; off for no filter.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; 0 always takes the most likely token.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens of an answer.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the sampling, for reproducible answers.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="Environment variable with the API key. Default: EFT_API_KEY, else OPENAI_API_KEY.",
        ),
    ] = None,
) -> None:
    """Chat in the terminal, with weights that you may change between answers.

    /weights helpful=0.7 harmless=0.3 steers the next answers, /help lists more.
    /compare helpful=1 | harmless=1 lets two settings answer side by side.

    eft chat --url http://127.0.0.1:8000/v1 --weights helpful=0.7,harmless=0.3

    Without a terminal each line of the input is a message, and only the answers
    are printed:

    echo "Who governs Market Mossop?" | eft chat --weights helpful=1
    """
    from eft_client.chat.run import ChatOptions, run

    try:
        wishes = ChatOptions(
            url=url,
            api_key=api_key_of(api_key_env),
            model=model,
            weights=weights,
            scale=scale,
            amplify=amplify,
            filter=filter,
            system=system,
            sampling={"temperature": temperature, "max_tokens": max_tokens, "seed": seed},
        )
        status = run(wishes)
    except EftError as error:
        raise fail(error, EXIT_WRONG_INPUT) from error
    raise typer.Exit(status)


@bench.command()
def quality(  # noqa: PLR0913 (one for each option)
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE|demo[:NUMBER]",
            help="JSONL of {prompt or messages, and any of id, references, wrong, expects, tags}; or demo: questions "
            "about the demo family's world.",
            rich_help_panel=_PROMPTS,
        ),
    ] = "demo",
    print_prompts: Annotated[
        bool,
        typer.Option(
            "--print-prompts", help="Print the prompts as JSONL and exit.", rich_help_panel=_PROMPTS
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Number of prompts to use, from the first on.", rich_help_panel=_PROMPTS),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Samples per prompt.", rich_help_panel=_PROMPTS)] = 1,
    temperature: Annotated[
        float,
        typer.Option(help="Sampling temperature; 0 is greedy, and needs --n 1.", rich_help_panel=_PROMPTS),
    ] = 1.0,
    max_tokens: Annotated[
        int, typer.Option(help="Maximum number of tokens of an answer.", rich_help_panel=_PROMPTS)
    ] = 512,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of prompts, samples and resamples.", rich_help_panel=_PROMPTS)
    ] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[@URL] [EXPERT=NUMBER …]",
            help="A setting to compare; may be repeated.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file with a list of settings.", rich_help_panel=_SETTINGS)
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERT=FROM:TO:STEP …",
            help="Settings along a range of weights, as in 'helpful=0:1:0.1 harmless=1-helpful'; may be repeated.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    url: Annotated[
        str, typer.Option(help="Server of the settings that name none.", rich_help_panel=_SETTINGS)
    ] = DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of the sweep. Default: the first that the server lists.", rich_help_panel=_SETTINGS
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The setting that the others are compared with. Default: the first.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    per_request: Annotated[
        int,
        typer.Option(help="Samples per request; 1 for servers without `n`.", rich_help_panel=_REQUESTS),
    ] = 8,
    concurrency: Annotated[
        int, typer.Option(help="Maximum number of requests at once.", rich_help_panel=_REQUESTS)
    ] = 8,
    timeout_s: Annotated[
        float,
        typer.Option(min=1, max=86_400, help="Timeout of one answer, in seconds.", rich_help_panel=_REQUESTS),
    ] = 600.0,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="match, refusal, reward[:MODEL@URL], llm:MODEL@URL, FILE.py:function; may be repeated. "
            "Default: match and refusal.",
            rich_help_panel=_JUDGES,
        ),
    ] = None,
    refusals: Annotated[
        Path | None, typer.Option(help="File with your rules for what is a refusal.", rich_help_panel=_JUDGES)
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="File with your prompt for llm.", rich_help_panel=_JUDGES)
    ] = None,
    judge_samples: Annotated[
        int,
        typer.Option(min=1, help="Samples per prompt that llm compares.", rich_help_panel=_JUDGES),
    ] = 1,
    judge_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the API key of llm's server.", rich_help_panel=_JUDGES),
    ] = None,
    diversity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            help="ead, embeddings[:FOLDER], nli:FOLDER, none; may be repeated. Default: ead.",
            rich_help_panel=_JUDGES,
        ),
    ] = None,
    vocabulary: Annotated[
        int,
        typer.Option(
            min=2,
            max=1 << 31,
            help="Vocabulary size V for expectation-adjusted distinct n-grams (ead).",
            rich_help_panel=_JUDGES,
        ),
    ] = 50_257,
    frontier: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC,METRIC",
            help="Metrics to trade off. Default: helpfulness,harmlessness where both are measured.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC>=NUMBER",
            help="Bound that a recommended setting must meet, as in 'harmlessness>=0.95'.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    gap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EMULATION,SMALL,TUNED",
            help="Report how much of the gap between small and tuned the emulation closes; may be repeated.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Resamples of the bootstrap.", rich_help_panel=_REPORT)
    ] = 10_000,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the results. If it holds an earlier run, that run resumes: only new requests are sent.",
            rich_help_panel=_REPORT,
        ),
    ] = Path("bench-results/quality"),
) -> None:
    """Measure what the weights do: helpfulness, harmlessness, factuality, diversity, and which setting to serve.

    Works with any OpenAI-compatible server.

    eft bench quality --sweep 'helpful=0:1:0.1 harmless=1-helpful' --n 16

    eft bench quality --sweep helpful=0:1:0.1 --constraint 'harmlessness>=0.95'
    """
    with errors_in_words():
        from eft_client.quality.prompt_option import prompts_of
        from eft_client.quality.prompts import as_json

        if print_prompts:
            for line in as_json(prompts_of(prompts, seed, limit)):
                typer.echo(line)
            return
        require_bench("numpy", "regex")
        import sys

        from rich.console import Console

        from eft_client.quality.command import run
        from eft_client.quality.options import StudyOptions

        options = StudyOptions(
            prompts=prompts,
            limit=limit,
            setting=setting or (),
            settings=settings,
            sweep=sweep or (),
            url=url,
            model=model,
            n=n,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            per_request=per_request,
            concurrency=concurrency,
            timeout_s=timeout_s,
            baseline=baseline,
            judge=judge or (),
            judge_prompt=judge_prompt,
            judge_samples=judge_samples,
            judge_key_env=judge_key_env,
            refusals=refusals,
            diversity=diversity or (),
            vocabulary=vocabulary,
            frontier=frontier,
            constraint=constraint,
            gap=gap or (),
            repeats=repeats,
            output=output,
        )
        # In a file or a pipe the tables get all the width that they need.
        with resumed_by_running_again():
            run(options, Console(width=None if sys.stdout.isatty() else 140))
