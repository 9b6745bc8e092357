"""The files of the page: their names, media types and hashes, and how they are sent."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["PAGE", "Asset", "assets"]

PAGE = "index.html"
"""The asset that is the page itself."""

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        content: Its bytes.
        media_type: The Content-Type.
    """

    content: bytes
    media_type: str

    @cached_property
    def etag(self) -> str:
        """A strong validator of the bytes that are sent without compression."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @property
    def gzipped_etag(self) -> str:
        """A strong validator of the compressed bytes, which are others."""
        return f'{self.etag[:-1]}-gzip"'

    @cached_property
    def gzipped(self) -> bytes:
        """The bytes compressed, once for all who ask."""
        return gzip.compress(self.content, compresslevel=9, mtime=0)


def assets() -> Mapping[str, Asset]:
    """Every file by its name: the path below ``static``, with slashes."""
    return dict(_walk(files(__package__) / "static", ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _walk(entry, f"{name}/")
        else:
            found.append((name, Asset(entry.read_bytes(), _MEDIA_TYPES[name.rpartition(".")[2]])))
    return found
