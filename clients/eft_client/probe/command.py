"""The command `eft probe`: from options to a folder of results; the `probe` extra is imported late."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eft_client.exits import require_probe, resumed_by_running_again
from eft_client.pairs.options import SERVER_PANEL, ApiKeyEnv, Overrides, ServedFamily

__all__ = ["probe"]

_DATA, _PROBES = "Data and targets", "Activations and probes"


def probe(  # noqa: PLR0913 (one for each option)
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|demo[:NUMBER]",
            help="JSONL of {prompt, chosen, rejected} or {prompt, completion, label}; or demo: questions about the "
            "demo family's world, with answers in the manner of --expert.",
            rich_help_panel=_DATA,
        ),
    ],
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY]",
            help="A family file, or a bundled family. It may be left out with --url.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="preference|reward|label|token-reward",
            help="What probes have to say: which of two answers was chosen, the expert's implicit reward of an answer "
            "or of each token, or the data's label. May be repeated. Default: preference, if the data has pairs, else "
            "label, else reward.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of lines to use at most, from the first on. Time and memory grow with its square.",
            rich_help_panel=_DATA,
        ),
    ] = 2000,
    end: Annotated[
        bool,
        typer.Option(
            "--end/--no-end",
            help="Read the token that ends the turn as part of an answer. A family without a chat template may have "
            "none.",
            rich_help_panel=_DATA,
        ),
    ] = True,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHT,…",
            help="Beside the expert's own reward that of the composite, less the base, at these weights of the expert.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(help="Expert to probe. Default: the family's only one.", rich_help_panel=SERVER_PANEL),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Base URL of a running EFT server, whose family file says server.activations: true. Default: an "
            "engine is started here.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = None,
    model: ServedFamily = None,
    api_key_env: ApiKeyEnv = None,
    overrides: Overrides = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="all|NUMBER,…",
            help="Layers to probe, from 0 on, or from the end as in -1.",
            rich_help_panel=_PROBES,
        ),
    ] = "all",
    site: Annotated[
        Literal["residual", "mlp"],
        typer.Option(
            help="The residual stream behind a block, or the output of its feed-forward network.",
            rich_help_panel=_PROBES,
        ),
    ] = "residual",
    pool: Annotated[
        Literal["last", "mean"] | None,
        typer.Option(
            help="Which state stands for an answer: the one after its last token, or the mean over its tokens. "
            "Default: last.",
            rich_help_panel=_PROBES,
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000_000,
            help="Tokens to keep for token-reward and --autoencoder, the same number of each answer.",
            rich_help_panel=_PROBES,
        ),
    ] = 5000,
    autoencoder: Annotated[
        bool,
        typer.Option(
            "--autoencoder",
            help="Probe the codes of sparse autoencoders, too (extra `sae`), at the layers that changed most.",
            rich_help_panel=_PROBES,
        ),
    ] = False,
    folds: Annotated[
        int, typer.Option(min=2, max=20, help="Folds of the cross-validation.", rich_help_panel=_PROBES)
    ] = 5,
    shuffles: Annotated[
        int, typer.Option(min=5, max=1000, help="How often targets are shuffled.", rich_help_panel=_PROBES)
    ] = 20,
    repeats: Annotated[
        int,
        typer.Option(min=100, max=1_000_000, help="Resamples of the bootstrap.", rich_help_panel=_PROBES),
    ] = 2000,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of folds, shuffles, tokens and resamples.", rich_help_panel=_PROBES),
    ] = 0,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the results. If it holds activations of the same data and members, they are used.",
        ),
    ] = Path("bench-results/probe"),
) -> None:
    """Probe whether an expert's activations carry the feedback that it was trained on.

    Linear probes by layer, cross-validated by prompt, beside three controls:
    the reference's activations, a bag of tokens, and shuffled targets, which
    must be at chance. The finding is the difference (arXiv 2310.08164).

    eft probe demo --expert harmless --data demo:180

    eft probe runs/dpo/family.yaml --data runs/dpo/held-out.jsonl
    """
    from eft_server.exits import errors_in_words

    with errors_in_words():
        require_probe()
        import sys

        from rich.console import Console

        from eft_client.probe.options import ProbeOptions
        from eft_client.probe.run import run

        options = ProbeOptions(
            family=family,
            data=data,
            output=output,
            target=target or (),
            limit=limit,
            end=end,
            over=over,
            expert=expert,
            url=url,
            model=model,
            api_key_env=api_key_env,
            overrides=overrides or (),
            layers=layers,
            site=site,
            pool=pool,
            max_tokens=max_tokens,
            autoencoder=autoencoder,
            folds=folds,
            shuffles=shuffles,
            repeats=repeats,
            seed=seed,
        )
        with resumed_by_running_again():
            run(options, Console(width=None if sys.stdout.isatty() else 140))
