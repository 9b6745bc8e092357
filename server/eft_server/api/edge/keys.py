"""The file of API keys, read before anything that takes long."""

from pathlib import Path

from eft_server.errors import ConfigError

__all__ = ["read_api_keys"]


def read_api_keys(path: Path | None) -> tuple[str, ...]:
    """Read one API key per line; blank lines and lines that start with # are ignored. Without a file there are none.

    Raises:
        ConfigError: The file cannot be read, holds no key, or holds a key with spaces or non-ASCII characters.
    """
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"server.api_key_file: cannot read {path}: {exc}") from exc
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"server.api_key_file: {path} holds no key; write one per line")
    for number, line in enumerate(lines, start=1):
        if line in keys and not (line.isascii() and line.isprintable() and " " not in line):
            raise ConfigError(f"{path}:{number}: a key is printable ASCII without spaces")
    return keys
