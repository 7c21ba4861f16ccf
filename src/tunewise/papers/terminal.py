"""A sheet in a terminal. Where it is wider than that, nothing is broken within a cell: what many rows have in common
becomes a heading above them, and a long last column a line below each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tunewise.papers.sheet import Column, Sheet

_BELOW = 4
"""Blanks before what stands below a row."""


@dataclass(frozen=True)
class _Layout:
    """The columns from `heads` on, less the last one where that is `below`, stand side by side."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    heads: int = 0
    below: bool = False

    @property
    def places(self) -> range:
        return range(self.heads, len(self.columns) - self.below)

    def width(self, place: int) -> int:
        return max(cell_len(text) for text in (self.columns[place].title, *(row[place] for row in self.rows)))

    @property
    def total(self) -> int:
        return sum(self.width(place) + 1 for place in self.places) - 1

    def line(self, texts: Sequence[str]) -> str:
        cells = []
        for place in self.places:
            blanks = " " * (self.width(place) - cell_len(texts[place]))
            cells.append(blanks + texts[place] if self.columns[place].right else texts[place] + blanks)
        return " ".join(cells).rstrip()


def show(sheet: Sheet, console: Console) -> None:
    """Print it, no wider than the terminal if that can be."""
    columns, rows = sheet.cut("text")
    layout = _fitting(_Layout(columns, [[entry.text for entry in row] for row in rows]), console.width)
    console.print(sheet.title, style="bold", highlight=False)
    _say(console, layout.line([column.title for column in columns]), "bold")
    for heading, block in groupby(layout.rows, lambda row: list(row[: layout.heads])):
        if heading:
            _say(console, ", ".join(heading), "bold cyan")
        for row in block:
            _say(console, layout.line(row))
            if layout.below and row[-1]:
                for line in textwrap.wrap(f"{columns[-1].title}: {row[-1]}", max(20, console.width - _BELOW)):
                    _say(console, " " * _BELOW + line, "dim")
    for line in sheet.legend:
        console.print(f"- {line}", highlight=False, markup=False, style="dim")


def _fitting(layout: _Layout, width: int) -> _Layout:
    """The first of these that fits, else the last: as it is, the first column as headings, the last one below too, two
    columns as headings, three."""
    columns = layout.columns
    leading = next((place for place, column in enumerate(columns) if column.right), len(columns)) - 1
    below = not columns[-1].right and leading < len(columns) - 2
    tried = [layout, replace(layout, heads=min(1, leading))]
    tried += [replace(layout, heads=min(count, leading), below=below) for count in (0, 1, 2, 3)]
    return next((one for one in tried if one.total <= width), tried[-1])


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
