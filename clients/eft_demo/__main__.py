"""`python -m eft_demo`: build the demo family, evaluate it, and write its table and its picture."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from transformers.utils.logging import disable_progress_bar

from eft_client.progress import Progress
from eft_demo.build import MODELS, Workshop
from eft_demo.evaluation import DECODINGS, Score, ask, evaluate, settings
from eft_demo.figure import draw_frontier
from eft_demo.recipe import FULL, SCALES, SMOKE
from eft_demo.report import write_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    disable_progress_bar()  # transformers' own: one per file, between ours
    with Progress() as bars:
        recipe = SMOKE if options.smoke else FULL
        workshop = Workshop(options.work, recipe, _reporter(bars), options.device)
        for scale in options.scales:
            workshop.build(scale)
        if options.train_only:
            return
        scores = _evaluate(workshop, bars)
    write_report(scores, options.docs)
    draw_frontier(scores, options.docs / "images" / "frontier.png")
    workshop.ship(options.members)
    Console().print(Markdown((options.docs / "demo-evaluation.md").read_text(encoding="utf-8")))


def _parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m eft_demo",
        description="Train the demo family from nothing, evaluate it on held-out questions, and write the table, "
        "the picture and the checkpoints that ship. Models already in the work folder are not trained again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    members = Path("server/eft_server/family/bundled/demo")
    parser.add_argument(
        "--work", type=Path, default=Path(".demo"), help="folder of all checkpoints, large ones too"
    )
    parser.add_argument(
        "--members", type=Path, default=members, help="folder that receives the served members"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the table and of images/")
    parser.add_argument(
        "--scales", nargs="+", choices=SCALES, default=list(SCALES), help="which scales to train"
    )
    parser.add_argument("--train-only", action="store_true", help="stop before the evaluation")
    parser.add_argument("--smoke", action="store_true", help="a few steps only: shows that everything runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="where to train and decode, e.g. cuda")
    return parser


def _reporter(bars: Progress) -> Callable[[str, int], Callable[[int, float], None]]:
    """A factory of progress callbacks, each of which owns one stage."""

    def start(name: str, steps: int) -> Callable[[int, float], None]:
        more, done = bars.begin(name, steps), 0

        def advance(step: int, loss: float) -> None:
            nonlocal done
            more(step - done, now=f"loss {loss:.2f}")
            done = step

        return advance

    return start


def _evaluate(workshop: Workshop, bars: Progress) -> dict[tuple[str, str], Score]:
    """Score every setting under every decoding."""
    recipe = workshop.recipe
    questions = ask(workshop.world, recipe.seed, safe=recipe.safe_questions, unsafe=recipe.unsafe_questions)
    models = {name: workshop.load(name) for name in MODELS}
    advance = bars.begin("evaluation", len(settings(models)) * len(DECODINGS))
    scores = {}
    for decoding, name, score in evaluate(models, questions, workshop.tokenizer()):
        scores[decoding, name] = score
        advance(now=name)
    return scores


if __name__ == "__main__":
    main()
