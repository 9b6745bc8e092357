"""The folder of a command's results, and when what it keeps is still true."""

from pathlib import Path

from eft_client.errors import EftError

__all__ = ["TOLERANCE_A_TOKEN", "make_folder"]

TOLERANCE_A_TOKEN = 0.02
"""Nats between two readings of a text by the same weights, in another batch or dtype."""


def make_folder(folder: Path, wrong: type[EftError]) -> None:
    """Make the folder that `--output` names, if it is not there.

    Raises:
        wrong: It cannot be made; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise wrong(f"--output {folder}: is a file; expected a folder") from None
    except OSError as error:
        raise wrong(f"{folder}: {error.strerror or error}") from None
