"""Numbers that somebody typed."""

import math

__all__ = ["finite_number"]


def finite_number(text: str) -> float | None:
    """The number that the text is; None where it is none, or NaN or infinite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
