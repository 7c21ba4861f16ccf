"""`tunewise report`: the report of finished runs, made again without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.locating import read_study
from tunewise.errors import SpecError, TunewiseError

_ENDINGS = {"html": "html", "csv": "csv", "md": "md", "markdown": "md", "latex": "latex", "tex": "latex"}


def report(
    runs: flags.Study = Path("runs"),
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="File to write; report.html in the study's folder, else stdout.")
    ] = None,
    format: Annotated[
        Literal["html", "csv", "md", "latex"] | None, Parameter(help="By the ending of --out, else html.")
    ] = None,
) -> None:
    """Write the report, or print its table."""
    kind = format or _format_of(out)
    if kind == "html":
        study = read_study(runs, measures=True)
        from tunewise.study.compare import conclude

        print(conclude(study, out).report)
        return
    study = read_study(runs)
    from tunewise.advise.recommend import recommend
    from tunewise.report import table
    from tunewise.store.files import write_atomically

    summaries = study.summarise()
    try:
        recommendation = recommend(summaries, tuning=study.tuning)
    except TunewiseError:  # no finished run: the table shows that
        recommendation = None
    writer = {"csv": table.csv, "md": table.markdown, "latex": table.latex}[kind]
    text = writer(table.build_table(summaries, recommendation, study.costs))
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text)
        print(out)


def _format_of(out: Path | None) -> str:
    ending = out.suffix.removeprefix(".") if out and out.suffix else "html"
    if ending not in _ENDINGS:
        raise SpecError(f"--out {out}: no format has the ending .{ending}; give --format html, csv, md or latex")
    return _ENDINGS[ending]
