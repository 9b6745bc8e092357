"""Tables on a terminal, with cells from anywhere."""

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from eft_client.text import shortened

__all__ = ["as_table"]

MAX_CELL_CHARS = 200


def as_table(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> Table:
    """Cells as they are: what a server or a file called something is no markup, and has no control characters."""
    table = Table(*(Column(Text(shortened(cell, MAX_CELL_CHARS))) for cell in header))
    for row in rows:
        table.add_row(*(Text(shortened("–" if cell is None else cell, MAX_CELL_CHARS)) for cell in row))
    return table
