"""The command `eft train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eft_client.exits import EXIT_INTERRUPTED, require_packages

if TYPE_CHECKING:
    from eft_train.data.reading import DataSource
    from eft_train.plan import Plan

__all__ = ["train"]

_PACKAGES = ("accelerate", "datasets", "peft", "trl")
_DATA, _TRAINING, _HERE = "Data", "Training", "Machine and hub"


def train(  # noqa: PLR0913 (one for each option)
    recipe: Annotated[
        str | None, typer.Argument(help="sft, dpo, extend, arm, or a YAML file of the same form.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The reference: a directory, or a model on the hub.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATASET",
            help="JSONL of {prompt, chosen, rejected}, {prompt, completion} or {messages}; or a data set: a directory, "
            "or one on the hub. Dialogues in HH-rlhf's form are divided.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder of the results.")] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="Print the recipes, with the sources of their numbers, and exit.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the recipe, such as dpo.beta=0.3 or lora.rank=32; may be repeated.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Learn all weights instead of a LoRA adapter.", rich_help_panel=_TRAINING
        ),
    ] = False,
    epochs: Annotated[
        float | None, typer.Option(help="Epochs of every phase.", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Seed of the division, the order and the start.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="EXAMPLES",
            help="Measure, and keep an expert, after so many examples. Default: an eighth of all.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the interrupted training in DIR.", rich_help_panel=_TRAINING
        ),
    ] = False,
    max_examples: Annotated[
        int | None,
        typer.Option(min=1, help="Learn from at most so many examples.", rich_help_panel=_DATA),
    ] = None,
    held_out: Annotated[
        str,
        typer.Option(
            metavar="SHARE|FILE",
            help="Share of the examples, by prompt, that is measured and never learnt; or a file of such examples.",
            rich_help_panel=_DATA,
        ),
    ] = "0.1",
    split: Annotated[str, typer.Option(help="Split of a data set.", rich_help_panel=_DATA)] = "train",
    subset: Annotated[
        str | None, typer.Option(help="Configuration of a data set.", rich_help_panel=_DATA)
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder in a data set, such as helpful-base of Anthropic/hh-rlhf.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    large: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Serve the expert beside this larger base. Default: beside its reference."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.", rich_help_panel=_HERE)
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32 or bfloat16. auto: float32 on CPUs, bfloat16 on GPUs that have it.",
            rich_help_panel=_HERE,
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: torch's.", rich_help_panel=_HERE)
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Serve the result in this process, and compare with what the trainer measured.",
            rich_help_panel=_HERE,
        ),
    ] = True,
    revision: Annotated[
        str | None,
        typer.Option(help="The base's revision on the hub.", rich_help_panel=_HERE),
    ] = None,
    data_revision: Annotated[
        str | None,
        typer.Option(help="The data set's revision on the hub.", rich_help_panel=_HERE),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not contact the hub; use only its cache.", rich_help_panel=_HERE),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="The hub's cache folder. Default: $HF_HUB_CACHE or $HF_HOME/hub.", rich_help_panel=_HERE
        ),
    ] = None,
) -> None:
    """Fine-tune an expert, and write the family file that serves it beside its reference.

    eft train dpo --base Qwen/Qwen2.5-0.5B-Instruct --data pairs.jsonl --out ./polite

    eft train --list

    Ctrl-C stops after the step under way; the same command with --resume goes on.
    """
    from eft_server.errors import ConfigError
    from eft_server.exits import errors_in_words
    from eft_train.recipe import bundled_recipes, load_recipe

    with errors_in_words():
        if list_recipes:
            typer.echo(
                "\n".join(path.read_text(encoding="utf-8") for path in bundled_recipes().values()), nl=False
            )
            return
        if recipe is None or base is None or data is None or out is None:
            raise ConfigError(
                "a training needs RECIPE, --base, --data and --out; eft train --list shows recipes"
            )
        chosen = load_recipe(recipe, overrides or (), epochs=epochs)
        require_packages("training needs", _PACKAGES, "train", "install-train")
        from eft_server.environment import log_vllm, use_hub
        from eft_train.data.reading import DataSource
        from eft_train.plan import Plan

        log_vllm(None)
        use_hub(offline=offline, cache_dir=cache_dir)
        plan = Plan(
            recipe=chosen,
            base=base,
            data=DataSource(data, split, subset, data_dir, data_revision),
            out=out,
            revision=revision,
            large=large,
            full=full,
            held_out=_held_out(held_out),
            seed=seed,
            max_examples=max_examples,
            checkpoint_every=checkpoint_every,
            resume=resume,
            device=device,
            dtype=dtype,
            threads=threads,
            verify=verify,
        )
        _run(plan)


def _held_out(given: str) -> "float | DataSource":
    from eft_train.data.reading import DataSource

    try:
        return float(given)
    except ValueError:
        return DataSource(given)


def _run(plan: "Plan") -> None:
    from eft_client.progress import Progress
    from eft_train.errors import Interrupted
    from eft_train.run import train as run

    try:
        with Progress() as progress:
            trained = run(plan, progress)
    except (Interrupted, KeyboardInterrupt) as stopped:
        has_begun = (plan.out / ".training" / "plan.json").is_file()
        again = "with --resume to go on" if has_begun else "again"
        typer.echo(f"{str(stopped) or 'interrupted'}; run the same command {again}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    for warning in trained.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{trained.folder}: to serve it: eft serve {trained.family}")
