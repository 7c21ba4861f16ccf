"""`tunewise report`: the report of finished runs, made again without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.found import RUNS_HELP, finished
from tunewise.errors import SpecError, TunewiseError, suggest_nearest

_FORMATS = {"html": "html", "csv": "csv", "md": "md", "markdown": "md", "latex": "latex", "tex": "latex"}


def report(
    runs: Annotated[Path, typer.Argument(help=RUNS_HELP)] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="File to write.  [default: report.html in the comparison's folder; else stdout]")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="html, csv, md or latex.  [default: by --out's ending, else html]")
    ] = None,
) -> None:
    """Rebuild the report from finished runs, or print its table as CSV, Markdown or LaTeX."""
    kind = _kind(format, out)
    if kind == "html":
        from tunewise.quiet import quiet_libraries

        quiet_libraries()
        known = finished(runs, measures=True)
        from tunewise.comparison import conclude

        typer.echo(str(conclude(known, out).report))
        return
    known = finished(runs)
    from tunewise.advise.recommend import recommend
    from tunewise.advise.summary import summarise
    from tunewise.report import table
    from tunewise.store.files import write_atomically

    summaries = summarise(known.records, known.costs, known.spec.reference)
    try:
        recommendation = recommend(summaries, tuning=known.tuning)
    except TunewiseError:  # no finished run: the table says so
        recommendation = None
    writer = {"csv": table.csv, "md": table.markdown, "latex": table.latex}[kind]
    text = writer(table.build_table(summaries, recommendation, known.costs))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, text)
        typer.echo(str(out))


def _kind(asked: str | None, out: Path | None) -> str:
    if asked is None:
        asked = out.suffix.removeprefix(".") if out and out.suffix else "html"
        if asked not in _FORMATS:
            raise SpecError(f"--out {out}: no format has the ending .{asked}; give --format html, csv, md or latex")
    if asked not in _FORMATS:
        raise SpecError(f"--format {asked!r}{suggest_nearest(asked, ['html', 'csv', 'md', 'latex'])}")
    return _FORMATS[asked]
