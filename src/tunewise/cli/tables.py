"""Tables for a terminal or a pipe: plain text for thousands of lines, rich for those that fold long cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.text_format import pluralize

if TYPE_CHECKING:
    from rich.table import Table

    from tunewise.store.table import RunRow

_TEXTS = ("id", "status", "method", "model", "data", "metric", "started")
_NUMBERS = {"rank": "d", "alpha": "g", "rate": ".3g", "seed": "d", "test": ".4f", "gap": "+.4f", "seconds": ".1f"}
_SHOWN = (
    *("id", "status", "method", "rank", "alpha", "rate", "seed"),
    *("model", "data", "metric", "test", "gap", "seconds", "started"),
)
_PATH = 24
"""Characters of a path that are shown: its end, where paths differ."""


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


def lines_of(rows: Sequence[RunRow], ids: Collection[str]) -> list[str]:
    """The table, with ids as short as distinguishes all of `ids`, and why a run has no result."""
    if not rows:
        return []
    length = next((n for n in range(8, 16) if len({run_id[:n] for run_id in ids}) == len(ids)), 16)
    right = [position for position, title in enumerate(_SHOWN) if title in _NUMBERS]
    head, *lines = aligned([_SHOWN, *(_cells(row, length) for row in rows)], right=right)
    return [head, *(f"{line}  {row.problem or ''}".rstrip() for line, row in zip(lines, rows, strict=True))]


def summary_of(rows: Iterable[RunRow], of: int, place: Path) -> str:
    """'18 runs: 17 done, 1 running'."""
    counts = Counter(row.status for row in rows)
    total = sum(counts.values())
    if not total:
        return f"no runs in {place}" if not of else f"none of the {pluralize(of, 'run')} in {place} fits"
    shown = f"{total:,} of {pluralize(of, 'run')}" if total < of else pluralize(total, "run")
    return f"{shown}: {', '.join(f'{count:,} {status}' for status, count in counts.most_common())}"


def _cells(row: RunRow, length: int) -> list[str]:
    cells = {name: getattr(row, name) or "" for name in _TEXTS}
    for name, form in _NUMBERS.items():
        value = getattr(row, name)
        cells[name] = "" if value is None else format(value, form)
    for name in ("model", "data"):
        if len(cells[name]) > _PATH:
            cells[name] = "…" + cells[name][1 - _PATH :]
    cells |= {"id": row.id[:length], "started": cells["started"][:16].replace("T", " ")}
    return [cells[name] for name in _SHOWN]
