"""The clients' commands, for the command line that the server's are on, too: `eft chat` and `eft bench`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from eft_client.errors import EftError
from eft_client.exits import EXIT_INTERRUPTED, EXIT_WRONG_INPUT, errors_in_words, fail, require_bench
from eft_client.load.command import load
from eft_client.settings import DEFAULT_URL

__all__ = ["add_commands"]

bench = typer.Typer(
    name="bench",
    help="Measure servers: how fast they are, and what their weights do.",
    no_args_is_help=True,
)
bench.command()(load)


def add_commands(app: typer.Typer) -> None:
    """Put the clients' commands beside those that an application has."""
    app.command()(chat)
    app.add_typer(bench)


def chat(  # noqa: PLR0913 (one for each option)
    url: Annotated[
        str, typer.Option(help="The server: EFT's, or any that is OpenAI-compatible.")
    ] = DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option(help="Model, alias or member to ask. Default: the first that is listed.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="EXPERT=NUMBER,…", help="Weights. Default: the model's own.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="The factor on all weights.")] = None,
    amplify: Annotated[float | None, typer.Option(help="The factor on what size changes.")] = None,
    filter: Annotated[  # noqa: A002 (the option's name)
        str | None,
        typer.Option(
            metavar="KIND:TOP_P",
            help="Trust the small models within a nucleus alone, such as expert:0.9; off for none.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before everything else.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest token each time.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same question gets the same answer.")] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE", help="Where the API key is. Default: EFT_API_KEY, else OPENAI_API_KEY."
        ),
    ] = None,
) -> None:
    """Chat in the terminal, with weights that may change from one answer to the next.

    /weights helpful=0.7 harmless=0.3 steers what comes next, /help lists more.
    /compare helpful=1 | harmless=1 lets two settings answer side by side.

    eft chat --url http://127.0.0.1:8000/v1 --weights helpful=0.7,harmless=0.3

    Without a terminal each line of the input is a turn, and answers alone are
    printed:

    echo "Who governs Market Mossop?" | eft chat --weights helpful=1
    """
    from eft_client.chat.run import ChatOptions, run
    from eft_client.errors import WrongArgument

    try:
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise WrongArgument(f"--api-key-env: the environment has no variable {api_key_env!r}")
        wishes = ChatOptions(
            url=url,
            api_key=os.environ[api_key_env] if api_key_env else None,
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
            help="JSONL: {prompt or messages, and any of id, references, wrong, expects, tags}; or demo, questions "
            "about the demo family's world.",
            rich_help_panel="What is asked",
        ),
    ] = "demo",
    print_prompts: Annotated[
        bool,
        typer.Option(
            "--print-prompts", help="Print the prompts as JSONL and leave.", rich_help_panel="What is asked"
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many prompts.", rich_help_panel="What is asked")
    ] = None,
    n: Annotated[
        int, typer.Option("--n", help="Samples of each prompt.", rich_help_panel="What is asked")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy, for --n 1.", rich_help_panel="What is asked")
    ] = 1.0,
    max_tokens: Annotated[
        int, typer.Option(help="The longest answer.", rich_help_panel="What is asked")
    ] = 512,
    seed: Annotated[
        int, typer.Option(min=0, help="Of prompts, samples and resamples.", rich_help_panel="What is asked")
    ] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[@URL] [EXPERT=NUMBER …]",
            help="A setting to compare; may be repeated.",
            rich_help_panel="Whom",
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A YAML list of settings.", rich_help_panel="Whom")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERT=FROM:TO:STEP …",
            help="Settings along a sweep: 'helpful=0:1:0.1 harmless=1-helpful'; may be repeated.",
            rich_help_panel="Whom",
        ),
    ] = None,
    url: Annotated[
        str, typer.Option(help="Server of settings that name none.", rich_help_panel="Whom")
    ] = DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(help="Model of the sweep; default: the first listed.", rich_help_panel="Whom"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The setting to compare with; default: the first.", rich_help_panel="Whom"),
    ] = None,
    per_request: Annotated[
        int,
        typer.Option(
            help="Samples in one request; 1 for servers without `n`.", rich_help_panel="How it is asked"
        ),
    ] = 8,
    concurrency: Annotated[
        int, typer.Option(help="Requests under way at once.", rich_help_panel="How it is asked")
    ] = 8,
    timeout_s: Annotated[
        float,
        typer.Option(
            min=1, max=86_400, help="Longest wait for one answer.", rich_help_panel="How it is asked"
        ),
    ] = 600.0,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="match, refusal, reward[:MODEL@URL], llm:MODEL@URL, FILE.py:function; may be repeated. "
            "Default: match and refusal.",
            rich_help_panel="How it is judged",
        ),
    ] = None,
    refusals: Annotated[
        Path | None, typer.Option(help="Your own rules of refusals.", rich_help_panel="How it is judged")
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="Your own prompt for llm.", rich_help_panel="How it is judged")
    ] = None,
    judge_samples: Annotated[
        int,
        typer.Option(
            min=1, help="Samples of each prompt that llm compares.", rich_help_panel="How it is judged"
        ),
    ] = 1,
    judge_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with llm's API key.", rich_help_panel="How it is judged"),
    ] = None,
    diversity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            help="ead, embeddings[:FOLDER], nli:FOLDER, none; may be repeated. Default: ead.",
            rich_help_panel="How it is judged",
        ),
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=2, max=1 << 31, help="V of ead.", rich_help_panel="How it is judged")
    ] = 50_257,
    frontier: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC,METRIC",
            help="What to trade; default: helpfulness,harmlessness where both are measured.",
            rich_help_panel="What is told",
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC>=NUMBER",
            help="What a recommended setting must reach, as in 'harmlessness>=0.95'.",
            rich_help_panel="What is told",
        ),
    ] = None,
    gap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EMULATION,SMALL,TUNED",
            help="Settings whose gap closed is told; may be repeated.",
            rich_help_panel="What is told",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Resamples.", rich_help_panel="What is told")
    ] = 10_000,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of everything. With the same one a run goes on where it stopped, and asks only what is new.",
            rich_help_panel="What is told",
        ),
    ] = Path("bench-results/quality"),
) -> None:
    """What the weights do: helpfulness, harmlessness, factuality, diversity, and which setting to serve.

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
        # In a file or a pipe the tables get the room that they need.
        try:
            run(options, Console(width=None if sys.stdout.isatty() else 140))
        except KeyboardInterrupt:
            again = "interrupted: run the same command again, and it goes on where it stopped"
            typer.echo(again, err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
