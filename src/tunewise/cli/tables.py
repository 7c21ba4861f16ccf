"""Tables for a terminal or a pipe: plain text for thousands of lines, rich for those that fold long cells."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def terminal_width() -> int:
    """Columns of the terminal; 0 for a pipe or a file, where a line may have any length."""
    return shutil.get_terminal_size((0, 0)).columns


def rich_table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> Table:
    """A table without lines. The first column and those in `left` are aligned left and fold long cells, the others
    right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for position, title in enumerate(titles):
        if position == 0 or title in left:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def fit_columns(
    lines: Sequence[Sequence[str]], optional: Sequence[str], width: int, gap: int = 2
) -> tuple[list[list[str]], str]:
    """The columns that fit `width` characters, `gap` apart, and a note about those left out: their value where all rows
    have the same, else their names. `lines` begin with the titles; `optional` columns are left out in that order. All
    columns stay where `width` is 0."""
    columns = {title: list(cells) for title, *cells in zip(*lines, strict=True)}
    same, others = [], []
    for title in optional:
        widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
        if not width or sum(widths) + gap * (len(widths) - 1) <= width:
            break
        if (cells := columns.pop(title, None)) is None:
            continue
        if len(set(cells)) == 1 and cells[0]:
            same.append(f"{title} {cells[0]}")
        else:
            others.append(title)
    notes = [f"all: {', '.join(same)}"] if same else []
    notes += [f"no room for {', '.join(others)}; a wider terminal, a pipe and --json have them"] if others else []
    return [list(columns), *map(list, zip(*columns.values(), strict=True))], "; ".join(notes)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Text in lines of at most `width` characters."""
    return textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)


def aligned(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of cells as text in columns, two spaces apart; those in `right` are aligned right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths)]
    return ["  ".join(f.format(cell) for f, cell in zip(formats, line, strict=True)).rstrip() for line in lines]
