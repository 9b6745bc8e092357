"""A cache as huggingface_hub lays it out, without a hub."""

import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_to_cache(cache: Path, model: str, checkpoint: Path, revision: str = "main") -> Path:
    """Copy a checkpoint into the cache as a revision of a hub id, and return its snapshot."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    shutil.copytree(checkpoint, snapshot, symlinks=True)
    return snapshot
