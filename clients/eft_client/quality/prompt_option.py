"""The prompts that the option `--prompts` names: those of a file, or of the demo family's world."""

import os.path
from pathlib import Path

from eft_client.quality.demo_prompts import DEFAULT_SIZE, demo_prompts
from eft_client.quality.errors import StudyError
from eft_client.quality.prompts import Prompt, read_prompts

__all__ = ["prompts_of"]

MAX_DIGITS = 10


def prompts_of(text: str, seed: int, limit: int | None) -> list[Prompt]:
    """The prompts of a file, or of the demo family's world (`demo`, `demo:600`); the first `limit` of them.

    Raises:
        StudyError: There is no such file, or it says something else.
    """
    name, _, size = text.partition(":")
    if name == "demo" and not os.path.exists(text):  # also of a name that no file can have
        if size and not (size.isdecimal() and len(size) < MAX_DIGITS and int(size)):
            raise StudyError(f"prompts {text[:80]!r}: expected demo or demo:NUMBER, as in demo:600")
        prompts = demo_prompts(int(size) if size else DEFAULT_SIZE, seed=seed)
    else:
        prompts = read_prompts(Path(text))
    return prompts[:limit]
