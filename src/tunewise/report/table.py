"""The comparison table as Markdown, CSV, LaTeX and for the console, all from the same rows (`build_table`)."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewise import number_format as numbers
from tunewise.advise.recommend import Recommendation
from tunewise.advise.summary import MethodSummary
from tunewise.report.rows import Cell, Column, ComparisonTable, Row, build_table, explain_marks
from tunewise.text_format import escape_latex, escape_markdown

if TYPE_CHECKING:
    from rich.table import Table as ConsoleTable
    from rich.text import Text

__all__ = ["build_table", "console_table", "csv", "latex", "markdown"]


def markdown(table: ComparisonTable) -> str:
    """A pipe table: places in brackets, first places bold, the recommended method marked; the legend below."""

    def cell(of: Cell) -> str:
        text = escape_markdown(of.text + (f", {of.extra}" if of.extra else ""))
        if of.place is None:
            return text
        return f"**{text}** ({of.place})" if of.place.rank == 1 else f"{text} ({of.place})"

    header = ["method", *(f"{c.title} ({c.unit})" for c in table.columns), f"against {table.reference}"]
    lines = [
        "| " + " | ".join(escape_markdown(name) for name in header) + " |",
        "| --- |" + " ---: |" * len(table.columns) + " --- |",
    ]
    for row in table.rows:
        name = escape_markdown(row.method) + (" (recommended)" if row.chosen else "")
        name += f" ({', '.join(row.marks)})" if row.marks else ""
        cells = [cell(row.cells[c.key]) for c in table.columns]
        lines.append("| " + " | ".join([name, *cells, escape_markdown(_verdict(row))]) + " |")
    return "\n".join([*lines, "", *(f"- {escape_markdown(line)}" for line in table.legend)]) + "\n"


def csv(table: ComparisonTable) -> str:
    """Unrounded numbers: mean, interval and place of each column; losses in nats, times in seconds, sizes in bytes."""
    header = ["method"]
    for column in table.columns:
        ends = ("", "_low", "_high", "_place") if column.bounded else ("", "_place")
        header += [column.name + end for end in ends]
    header += ["verdict", "reference", "runs", "recommended", "pareto"]
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        line: list[str] = [row.method]
        for column in table.columns:
            cell = row.cells[column.key]
            values = [cell.value, cell.low, cell.high] if column.bounded else [cell.value]
            line += ["" if value is None else repr(value) for value in values]
            line.append(str(cell.place or ""))
        flags = ["yes" if flag else "no" for flag in (row.chosen, row.efficient)]
        writer.writerow([*line, row.verdict, table.reference, row.runs, *flags])
    return out.getvalue()


def latex(table: ComparisonTable) -> str:
    r"""A `tabular` for `booktabs`: first places bold, second underlined, a shared place with a raised `=`."""

    def cell(of: Cell) -> str:
        text = escape_latex(of.text)
        if of.place is None or of.place.rank > 2:
            return text
        text = rf"\textbf{{{text}}}" if of.place.rank == 1 else rf"\underline{{{text}}}"
        return text + ("$^{=}$" if of.place.shared else "")

    def heading(column: Column) -> str:
        unit = column.unit.split(",")[0] if column.key in ("metric", "gap") else ""
        return escape_latex(column.title + (f" ({unit})" if unit else ""))

    lines = [
        r"% needs \usepackage{booktabs}; bold: first, underlined: second, raised =: tied with the leader",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l}}",
        r"\toprule",
        " & ".join(["method", *(heading(c) for c in table.columns), f"against {escape_latex(table.reference)}"])
        + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [cell(row.cells[c.key]) for c in table.columns]
        lines.append(" & ".join([escape_latex(row.method), *cells, escape_latex(row.verdict)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def console_table(summaries: Sequence[MethodSummary], recommendation: Recommendation | None = None) -> ConsoleTable:
    """Two lines a row: the number, and below it its interval and its place."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = build_table(summaries, recommendation)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 0), show_edge=False)
    shown.add_column("method", overflow="fold", min_width=11, max_width=20)
    for column in table.columns:
        shown.add_column(column.short, justify="right", no_wrap=True)
    shown.add_column(f"against\n{table.reference}", overflow="fold", min_width=13)
    colours = {"better": "green", "worse": "red"}
    for row in table.rows:
        name = Text(row.method, style="bold" if row.chosen else "")
        if row.chosen:
            name.append("\nrecommended", style="green")
        for mark in row.marks:
            name.append(f"\n{mark}", style="yellow")
        if ";" in row.runs:  # some runs are missing
            name.append(f"\n{row.runs}", style="yellow")
        cells = [_console_cell(row.cells[column.key], column.key) for column in table.columns]
        shown.add_row(name, *cells, Text(row.verdict, style=colours.get(row.standing, "")))
    shown.caption = Text("\n".join(explain_marks(summaries)), justify="left")
    shown.caption_style = "yellow"
    return shown


def _console_cell(cell: Cell, key: str) -> Text:
    from rich.text import Text

    first, _, half = cell.text.partition(" ± ")
    if cell.value is not None and key == "trainable":
        first = numbers.short_count(int(cell.value))
    if cell.value is not None and key == "gap":  # three decimals do for a glance
        first = f"{cell.value:.3f}"
        half = "" if cell.low is None or cell.high is None else f"{(cell.high - cell.low) / 2:.3f}"
    second = f"±{half}" if half else cell.extra.removesuffix(" ×") if key == "step" else ""
    place = str(cell.place or "")
    text = Text(first, style="bold" if place.startswith("1") else "")
    if second or place:
        text.append(f"\n{second} {place:<2}", style="dim")
    return text


def _verdict(row: Row) -> str:
    return f"{row.verdict}: {row.verdict_detail}" if row.verdict_detail else row.verdict
