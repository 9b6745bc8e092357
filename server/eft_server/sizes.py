"""Sizes of memory, in words."""

__all__ = ["in_words"]

_GB = 1e9
_MB = 1e6


def in_words(size_bytes: float) -> str:
    """Gigabytes from 1 GB upwards, else megabytes."""
    return f"{size_bytes / _GB:.2f} GB" if size_bytes >= _GB else f"{size_bytes / _MB:.2f} MB"
