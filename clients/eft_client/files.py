"""Files that somebody else wrote: whole, and of a bounded size."""

from importlib.resources.abc import Traversable

__all__ = ["read_text"]


def read_text(path: Traversable, most_bytes: int, wrong: type[Exception]) -> str:
    """Read a UTF-8 file, less a byte-order mark at its beginning; nothing beyond the bound is read.

    Args:
        path: A path, or a file in a package.
        most_bytes: Its largest size.
        wrong: What to raise.

    Raises:
        wrong: The file cannot be read, is larger, or is not UTF-8; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise wrong(f"{path}: larger than {most_bytes} bytes")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"{path}: {error}") from None
