"""Tables on a narrow terminal: columns that can be spared are left out, and no word is cut."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence


def room() -> int:
    """Columns of the terminal; 0 for a pipe or a file, which has room for all."""
    return shutil.get_terminal_size((0, 0)).columns


def narrowed(
    lines: Sequence[Sequence[str]], spared: Sequence[str], width: int, gap: int = 2
) -> tuple[list[list[str]], str]:
    """The columns that there is room for in `width` characters, `gap` apart, and what is said of those left out: their
    value where all rows have one, and else their names. `lines` begin with the columns' names; `spared` are those that
    may go, the first of them first. All stay where `width` is 0."""
    columns = {name: list(cells) for name, *cells in zip(*lines, strict=True)}
    same, others = [], []
    for name in spared:
        widths = [max(len(one), *map(len, cells)) for one, cells in columns.items()]
        if not width or sum(widths) + gap * (len(widths) - 1) <= width:
            break
        if (cells := columns.pop(name, None)) is None:
            continue
        if len(set(cells)) == 1 and cells[0]:
            same.append(f"{name} {cells[0]}")
        else:
            others.append(name)
    said = [f"all: {', '.join(same)}"] if same else []
    said += [f"no room for {', '.join(others)}; a wider terminal, a pipe and --json have them"] if others else []
    return [list(columns), *map(list, zip(*columns.values(), strict=True))], "; ".join(said)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Text in lines of at most `width` characters."""
    return textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)
