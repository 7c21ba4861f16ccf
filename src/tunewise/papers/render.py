"""A sheet as LaTeX, CSV, HTML or Markdown; `terminal` shows one."""

from __future__ import annotations

import csv as csv_module
import io
from html import escape

from tunewise.papers.sheet import Sheet
from tunewise.report.escaping import for_latex, for_markdown

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --dim: #5d636e; --line: #d9dce2; --paper: #ffffff; --band: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --dim: #9aa1ad; --line: #343941; --paper: #16181c; --band: #1d2026 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.3rem; font-weight: 600 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--dim); font-weight: 600; position: sticky; top: 0; background: var(--paper) }
tbody tr:nth-child(even) { background: var(--band) }
.r { text-align: right }
td:last-child:not(.r) { white-space: normal; min-width: 18rem }
li { color: var(--dim); max-width: 60rem }
"""


def csv(sheet: Sheet) -> str:
    """Unrounded numbers, ends of intervals in columns of their own."""
    columns, rows = sheet.cut("csv")
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([entry.raw for entry in row] for row in rows)
    return out.getvalue()


def markdown(sheet: Sheet) -> str:
    """A pipe table, the legend below."""
    columns, rows = sheet.cut("text")
    lines = [
        f"**{for_markdown(sheet.title)}**",
        "",
        "| " + " | ".join(for_markdown(column.title) for column in columns) + " |",
        "|" + "|".join(" ---: " if column.right else " --- " for column in columns) + "|",
        *("| " + " | ".join(for_markdown(entry.text) for entry in row) + " |" for row in rows),
        "",
        *(f"- {for_markdown(line)}" for line in sheet.legend),
    ]
    return "\n".join(lines) + "\n"


def latex(sheet: Sheet) -> str:
    r"""A `tabular` for `booktabs`, a rule between models and data sets."""
    columns, rows = sheet.cut("text")
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {' '.join(sheet.title.split())}",
        *(f"% {' '.join(line.split())}" for line in sheet.legend),
        rf"\begin{{tabular}}{{{''.join('r' if column.right else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(for_latex(column.title) for column in columns) + r" \\",
    ]
    before = None
    for row in rows:
        if row[0].text != before:
            lines.append(r"\midrule")
        before = row[0].text
        lines.append(" & ".join(for_latex(entry.text) for entry in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def html(sheet: Sheet) -> str:
    """One page that needs nothing else; light or dark as the reader has it."""
    columns, rows = sheet.cut("text")

    def cells(tag: str, texts: list[str]) -> str:
        marks = [' class="r"' if column.right else "" for column in columns]
        return "".join(f"<{tag}{mark}>{escape(text)}</{tag}>" for mark, text in zip(marks, texts, strict=True))

    body = "\n".join(f"<tr>{cells('td', [entry.text for entry in row])}</tr>" for row in rows)
    legend = "\n".join(f"<li>{escape(line)}</li>" for line in sheet.legend)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sheet.title)}</title>\n<style>{_STYLE}</style></head><body>\n<h1>{escape(sheet.title)}</h1>\n"
        f'<div class="wide"><table>\n<thead><tr>{cells("th", [column.title for column in columns])}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n<ul>\n{legend}\n</ul>\n</body></html>\n"
    )


FORMS = {"csv": csv, "md": markdown, "tex": latex, "html": html}
"""By a file's suffix."""
