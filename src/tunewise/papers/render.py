"""A sheet as LaTeX, CSV, Markdown and in the terminal."""

from __future__ import annotations

import csv as csv_module
import io
import textwrap
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tunewise.papers.sheet import Sheet
from tunewise.text_format import escape_latex, escape_markdown

_INDENT = " " * 4


def csv(sheet: Sheet) -> str:
    """Unrounded values of all columns."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in sheet.columns])
    writer.writerows([entry.raw for entry in row] for row in sheet.rows)
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
        f"% {' '.join(sheet.title.split())}",
        *(f"% {' '.join(line.split())}" for line in sheet.legend),
        rf"\begin{{tabular}}{{{''.join('r' if column.right else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in columns) + r" \\",
    ]
    for _, group in groupby(rows, lambda row: row[0]):
        lines += [r"\midrule", *(" & ".join(map(escape_latex, row)) + r" \\" for row in group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMS = {"csv": csv, "md": markdown, "tex": latex}
"""By a file's suffix."""


def show(sheet: Sheet, console: Console) -> None:
    """Prints the sheet: headings above groups of rows, a long last column below each row, and no broken cell."""
    columns, rows = sheet.texts()
    below = not columns[-1].right
    shown = range(sheet.headings, len(columns) - below)
    widths = {i: max(cell_len(text) for text in (columns[i].title, *(row[i] for row in rows))) for i in shown}

    def line(texts: list[str]) -> str:
        cells = []
        for i in shown:
            blanks = " " * (widths[i] - cell_len(texts[i]))
            cells.append(blanks + texts[i] if columns[i].right else texts[i] + blanks)
        return " ".join(cells).rstrip()

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    console.print(sheet.title, style="bold", highlight=False)
    say(line([column.title for column in columns]), "bold")
    for heading, group in groupby(rows, lambda row: row[: sheet.headings]):
        if heading:
            say(", ".join(heading), "bold cyan")
        for row in group:
            say(line(row))
            if below and row[-1]:
                text = f"{columns[-1].title}: {row[-1]}"
                for part in textwrap.wrap(text, max(20, console.width - len(_INDENT))):
                    say(_INDENT + part, "dim")
    for text in sheet.legend:
        console.print(f"- {text}", highlight=False, markup=False, style="dim")
