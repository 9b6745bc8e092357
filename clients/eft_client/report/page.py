"""The page: blocks in the order in which they were added, and the file that they become."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eft_client.report.plots import as_svg

__all__ = ["Blocks", "Cell", "Page"]

#: What a table holds. Numbers are written as they are: the caller rounds them.
Cell = str | int | float | None

#: What counts as a number in a cell: it starts like one, so "1.05 (0.98 to 1.11)" and "−3 %" do, too.
_NUMERIC = re.compile(r"[+\-−±<≈]?\s?[\d.]|–$|$")

_environment = Environment(
    loader=PackageLoader("eft_client.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Blocks:
    """A run of blocks: what a page holds, and what a fold in it holds.

    Every method adds one block and returns the object itself. All text is escaped, so it may come from anywhere.
    """

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []

    def heading(self, text: str) -> Self:
        """Begin a section."""
        return self._add("heading", text=text)

    def text(self, *paragraphs: str) -> Self:
        """Add paragraphs."""
        return self._add("text", paragraphs=paragraphs)

    def code(self, text: str) -> Self:
        """Add text that keeps its line breaks and spaces: a command, a file, an answer."""
        return self._add("code", text=text)

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        caption: str = "",
        *,
        emphasised: Sequence[int] = (),
    ) -> Self:
        """Add a table; columns of numbers are set flush right, None is a dash.

        Args:
            header: the columns' names.
            rows: as many cells each.
            caption: what the table shows.
            emphasised: the indices of rows that stand out.

        Raises:
            ValueError: A row has more or fewer cells than the header.
        """
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)!r}")
        cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
        numeric = [all(_NUMERIC.match(row[column]) for row in cells) for column in range(len(header))]
        return self._add(
            "table",
            header=list(zip(header, numeric, strict=True)),
            rows=[
                (index in emphasised, list(zip(row, numeric, strict=True))) for index, row in enumerate(cells)
            ],
            caption=caption,
        )

    def figure(self, figure: Any, caption: str, *, alternative: str | None = None) -> Self:
        """Add a figure that was drawn under `plots.style`.

        Args:
            figure: matplotlib's, drawn now: later changes to it don't show.
            caption: what it shows.
            alternative: the text for readers who cannot see it; the caption where there is none.
        """
        svg = Markup(as_svg(figure))
        return self._add("figure", svg=svg, caption=caption, alternative=alternative or caption)

    def details(self, summary: str, contents: "Blocks") -> Self:
        """Add blocks that are folded away until a reader opens them; print shows them folded."""
        return self._add("details", summary=summary, blocks=contents)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._blocks)

    def _add(self, kind: str, **fields: Any) -> Self:
        self._blocks.append({"kind": kind, **fields})
        return self


class Page(Blocks):
    """One self-contained HTML page: nothing is fetched and no script runs.

    `Page("Load").text("…").table(header, rows, "…").figure(figure, "…").write(path)`. It is readable in light and in
    dark, and prints.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        super().__init__()
        self._title = title
        self._subtitle = subtitle

    def html(self) -> str:
        """The page as text."""
        template = _environment.get_template("page.html.jinja")
        return _apart(template.render(title=self._title, subtitle=self._subtitle, blocks=self))

    def write(self, path: Path) -> None:
        """Write the page, with the folder that it goes into. Halves of surrogate pairs become question marks."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8", errors="replace")


def _apart(html: str) -> str:
    """Give every figure distinct ids: matplotlib names the parts of each of them alike."""
    figures = html.split("<svg")
    return "<svg".join(
        [figures[0], *(_renamed(figure, f"f{number}-") for number, figure in enumerate(figures[1:], 1))]
    )


def _renamed(html: str, prefix: str) -> str:
    svg, end, rest = html.partition("</svg>")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg) + end + rest
