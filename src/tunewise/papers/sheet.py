"""A table for the terminal, LaTeX, CSV and Markdown: columns, rows of entries with a text and a value, a legend."""

from __future__ import annotations

import csv as csv_module
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Never, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tunewise.text_format import escape_latex, escape_markdown

Line = TypeVar("Line", contravariant=True)
_INDENT = " " * 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A text for people, and the unrounded value."""

    text: str = ""
    value: float | str | None = None


@dataclass(frozen=True, slots=True)
class SheetColumn(Generic[Line]):
    """`key` is the name in CSV; a column without a title is only there. `form` is a format of the value, or makes the
    text from the line."""

    key: str
    title: str
    value: Callable[[Line], float | str | None]
    form: str | Callable[[Line], str] = ""
    right: bool = True

    def entry(self, line: Line) -> Entry:
        value = self.value(line)
        if not isinstance(self.form, str):
            return Entry(self.form(line), value)
        return Entry("" if value is None else format(value, self.form), value)


class Sheet:
    """A row of entries for each line. In a terminal, rows with equal first `headings` entries share a heading."""

    def __init__(
        self,
        title: str,
        columns: Sequence[SheetColumn[Line]],
        lines: Sequence[Line],
        legend: list[str],
        headings: int = 0,
    ) -> None:
        self.title, self.legend, self.headings = title, legend, headings
        self.columns: Sequence[SheetColumn[Never]] = columns
        self.rows = [[column.entry(line) for column in columns] for line in lines]

    def texts(self) -> tuple[list[SheetColumn[Never]], list[list[str]]]:
        """The columns that people read, and their texts."""
        places = [i for i, column in enumerate(self.columns) if column.title]
        return [self.columns[i] for i in places], [[row[i].text for i in places] for row in self.rows]


def csv(sheet: Sheet) -> str:
    """Unrounded values of all columns."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in sheet.columns])
    writer.writerows([entry.value for entry in row] for row in sheet.rows)
    return out.getvalue()


def markdown(sheet: Sheet) -> str:
    """A pipe table, the legend below."""
    columns, rows = sheet.texts()
    lines = [
        f"**{escape_markdown(sheet.title)}**",
        "",
        "| " + " | ".join(escape_markdown(column.title) for column in columns) + " |",
        "|" + "|".join(" ---: " if column.right else " --- " for column in columns) + "|",
        *("| " + " | ".join(map(escape_markdown, row)) + " |" for row in rows),
        "",
        *(f"- {escape_markdown(line)}" for line in sheet.legend),
    ]
    return "\n".join(lines) + "\n"


def latex(sheet: Sheet) -> str:
    r"""A `tabular` for `booktabs`, with a rule between groups of the first column."""
    columns, rows = sheet.texts()
    lines = [
        r"% needs \usepackage{booktabs}",
        *(f"% {' '.join(line.split())}" for line in (sheet.title, *sheet.legend)),
        rf"\begin{{tabular}}{{{''.join('r' if column.right else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in columns) + r" \\",
    ]
    for _, group in groupby(rows, lambda row: row[0]):
        lines += [r"\midrule", *(" & ".join(map(escape_latex, row)) + r" \\" for row in group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMS: dict[str, Callable[[Sheet], str]] = {".csv": csv, ".md": markdown, ".tex": latex}
"""By a file's suffix."""


def show(sheet: Sheet, console: Console) -> None:
    """Prints the sheet: headings above groups of rows, a long last column below each row, and no broken cell."""
    columns, rows = sheet.texts()
    below = not columns[-1].right
    shown = range(sheet.headings, len(columns) - below)
    widths = {i: max(cell_len(text) for text in (columns[i].title, *(row[i] for row in rows))) for i in shown}

    def print_row(texts: list[str], style: str = "") -> None:
        blanks = {i: " " * (widths[i] - cell_len(texts[i])) for i in shown}
        cells = [blanks[i] + texts[i] if columns[i].right else texts[i] + blanks[i] for i in shown]
        console.print(Text(" ".join(cells).rstrip(), style=style), soft_wrap=True)

    console.print(sheet.title, style="bold", highlight=False)
    print_row([column.title for column in columns], "bold")
    for heading, group in groupby(rows, lambda row: row[: sheet.headings]):
        if heading:
            console.print(Text(", ".join(heading), style="bold cyan"), soft_wrap=True)
        for row in group:
            print_row(row)
            if below and row[-1]:
                text = f"{columns[-1].title}: {row[-1]}"
                for part in textwrap.wrap(text, max(20, console.width - len(_INDENT))):
                    console.print(Text(_INDENT + part, style="dim"), soft_wrap=True)
    for text in sheet.legend:
        console.print(f"- {text}", highlight=False, markup=False, style="dim")
