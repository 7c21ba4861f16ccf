"""Tables for a terminal or a pipe: plain text for thousands of lines, rich for those that fold long cells."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


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


def aligned(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of cells as text in columns, two spaces apart; those in `right` are aligned right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths)]
    return ["  ".join(f.format(cell) for f, cell in zip(formats, line, strict=True)).rstrip() for line in lines]
