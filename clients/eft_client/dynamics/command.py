"""The command `eft dynamics`: from options to a folder of results; the `bench` extra is imported late."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eft_client.exits import require_bench, resumed_by_running_again
from eft_client.pairs.options import SERVER_PANEL, ApiKeyEnv, Overrides, ServedFamily

__all__ = ["dynamics"]

_DATA, _REPORT = "Prompts and texts", "Report"


def dynamics(  # noqa: PLR0913 (one for each option)
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY]",
            help="The family whose experts are the checkpoints: checkpoints.yaml of eft train, another family file, "
            "or a bundled family. It may be left out with --url.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Training pairs: JSONL of prompt, chosen and rejected, and any of chosen_rephrased and "
            "rejected_rephrased. Default: trained-on.jsonl beside a family of eft train.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Held-out pairs in the same form. Default: held-out.jsonl beside a family of eft train.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(
            min=2, max=100_000, help="Prompts to draw from each file, one pair each.", rich_help_panel=_DATA
        ),
    ] = 100,
    rephrase: Annotated[
        bool,
        typer.Option(
            "--rephrase",
            help="Have the family's base rephrase the answers where the data has no rephrases. What a small model "
            "makes of that may not mean the same: read them.",
            rich_help_panel=_DATA,
        ),
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum length of the reference's own answers and of rephrases.",
            rich_help_panel=_DATA,
        ),
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option(
            min=0,
            max=2,
            help="Temperature of the reference's own answers; 0 is greedy.",
            rich_help_panel=_DATA,
        ),
    ] = 0.0,
    end: Annotated[
        bool,
        typer.Option(
            "--end/--no-end",
            help="Score the token that ends the turn, too, as trainers do.",
            rich_help_panel=_DATA,
        ),
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of all draws and resamples.", rich_help_panel=_DATA)
    ] = 0,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="EXPERT=EXAMPLES,…",
            help="The experts that are the checkpoints, with the examples that each has seen. Default: those whose "
            "names end in that number.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Checkpoints in memory at once: engines of so many are started one after the other. Default: all.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERT=FROM:TO:STEP",
            help="The same report along the weight of an expert in the composite, as in after-000400=0:3:0.25, or "
            "along scale; may be repeated.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Base URL of a running EFT server. Default: an engine is started here.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    model: ServedFamily = None,
    api_key_env: ApiKeyEnv = None,
    overrides: Overrides = None,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Maximum number of requests at once.", rich_help_panel=SERVER_PANEL
        ),
    ] = 4,
    by: Annotated[
        Literal["margin", "accuracy"],
        typer.Option(
            help="What the checkpoint to serve is chosen by: the implicit reward's margin, or the share of pairs "
            "where it is above 0.",
            rich_help_panel=_REPORT,
        ),
    ] = "margin",
    repeats: Annotated[
        int, typer.Option(min=100, max=100_000, help="Resamples of the bootstrap.", rich_help_panel=_REPORT)
    ] = 10_000,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the results. If it holds an earlier run of the same study, that run resumes.",
            rich_help_panel=_REPORT,
        ),
    ] = Path("bench-results/dynamics"),
) -> None:
    """Follow what fine-tuning does to the probability of texts.

    Of training and of held-out prompts: the chosen and the rejected answer,
    rephrases of them, the reference's own answer, other prompts' answers, tokens
    in disorder, and the likeliest continuation. One page says which checkpoint to
    serve, and whether and since when training squeezes (arXiv 2407.10490): every
    text falls, the chosen ones too, and only what is likeliest anyway rises.

    Checkpoints are experts whose names end in the number of examples seen, such
    as after-000400. One engine scores all of them.

    eft dynamics runs/dpo/checkpoints.yaml --output runs/dpo/dynamics

    Does amplifying an expert squeeze the composite, too?

    eft dynamics runs/dpo/checkpoints.yaml --over after-000400=0:3:0.25
    """
    from eft_server.exits import errors_in_words

    with errors_in_words():
        require_bench()
        import sys

        from rich.console import Console

        from eft_client.dynamics.options import DynamicsOptions
        from eft_client.dynamics.run import run

        options = DynamicsOptions(
            family=family,
            data=data,
            held_out=held_out,
            output=output,
            prompts=prompts,
            rephrase=rephrase,
            max_tokens=max_tokens,
            temperature=temperature,
            end=end,
            checkpoints=checkpoints,
            group=group,
            over=over or (),
            by=by,
            url=url,
            model=model,
            api_key_env=api_key_env,
            overrides=overrides or (),
            concurrency=concurrency,
            seed=seed,
            repeats=repeats,
        )
        with resumed_by_running_again():
            run(options, Console(width=None if sys.stdout.isatty() else 160))
