"""`python -m tests.engine.exact LEFT-OUT FAMILY.yaml …`: `make exact` on an engine that may leave out an adapter."""

import os
import sys
from dataclasses import replace
from typing import Any

import typer


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
        "0"  # So that what is changed here is changed in the engine.
    )
    from eft_server.bench import exactness
    from eft_server.engine.worker import composite

    left_out, read = sys.argv.pop(1), composite.read_low_rank

    def read_most(checkpoint: Any, model_class: Any) -> Any:
        terms = read(checkpoint, model_class)
        if checkpoint.name != left_out:
            return terms
        return [replace(term, b_OR=term.b_OR * 0) for term in terms]

    composite.read_low_rank = read_most
    typer.run(exactness.main)


if __name__ == "__main__":
    main()
