"""`report.html`: one file that answers first and then shows everything it rests on. Works offline, for good."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tunewise.advise.recommend import Recommendation
from tunewise.advise.summary import MethodSummary
from tunewise.errors import StoreError
from tunewise.report import palette, provenance, table
from tunewise.report.panels import confusion_panels, cost_panels, curve_panels, gap_panel
from tunewise.report.rows import Table, build_table, metric_name
from tunewise.report.section import ReportData
from tunewise.report.sections import build_sections
from tunewise.report.templates import templates
from tunewise.spec import CompareSpec
from tunewise.store.files import write_atomically
from tunewise.store.records import CostReport, Measured, RunRecord, TuningReport


def write_report(
    path: Path,
    *,
    title: str,
    comparison: CompareSpec,
    records: Sequence[RunRecord],
    histories: Mapping[str, Sequence[dict[str, Any]]],
    costs: CostReport | None,
    summaries: Sequence[MethodSummary],
    recommendation: Recommendation | None,
    folders: Mapping[str, str],
    measured: Mapping[str, Mapping[str, Measured]] | None = None,
    tuning: TuningReport | None = None,
) -> None:
    """Writes the report of a comparison to `path`, whole or not at all.

    `histories` (lines of `history.jsonl`) and `folders` (a run's folder, relative to the report's) are by run id,
    `measured` by measure and run id; each may lack runs. `recommendation` is None where nothing can be recommended.
    The same arguments give the same bytes. Raises `StoreError` where the file can't be written.
    """
    page = render(
        title=title,
        comparison=comparison,
        records=records,
        histories=histories,
        costs=costs,
        summaries=summaries,
        recommendation=recommendation,
        folders=folders,
        measured=measured,
        tuning=tuning,
    )
    _write_whole(path, page)


def render(
    *,
    title: str,
    comparison: CompareSpec,
    records: Sequence[RunRecord],
    histories: Mapping[str, Sequence[dict[str, Any]]],
    costs: CostReport | None,
    summaries: Sequence[MethodSummary],
    recommendation: Recommendation | None,
    folders: Mapping[str, str],
    measured: Mapping[str, Mapping[str, Measured]] | None = None,
    tuning: TuningReport | None = None,
) -> str:
    """The page of `write_report` as text."""
    pages = templates()
    marks = palette.marks([m.label for m in comparison.methods] + [s.label for s in summaries])
    metric = summaries[0].metric if summaries else "accuracy"
    comparison_table = build_table(summaries, recommendation, costs)
    confusions = confusion_panels(records, summaries, recommendation)
    classes = next((len(r.data.labels) for r in records if r.data), 0)
    data = ReportData(comparison, records, histories, costs, summaries, recommendation, measured or {}, marks, tuning)
    script = Markup(pages.get_template("page.js.jinja").render(dark=palette.DARK))
    return pages.get_template("page.html.jinja").render(
        title=title,
        subject=provenance.subject(comparison, records),
        comparison=comparison,
        answer=_answer(recommendation),
        recommendation=recommendation,
        runner_up=_runner_up(comparison_table, recommendation),
        marks=marks,
        cost_panels=cost_panels(summaries, costs, recommendation, marks),
        table=comparison_table,
        downloads=_downloads(comparison_table),
        curve_panels=curve_panels(records, histories, summaries, marks),
        gap_panel=gap_panel(summaries, marks),
        sections=build_sections(data),
        confusions=[p for p in confusions if not p.folded],
        folded_confusions=[p for p in confusions if p.folded],
        classes=classes,
        run_columns=provenance.run_columns(metric, comparison_table.is_share),
        runs=provenance.run_lines(records, folders, metric),
        facts=provenance.facts(comparison, records, costs, tuning),
        style=Markup(style_sheet()),
        plotly=Markup(plotly_script()),
        script=script,
        policy=content_policy([plotly_script(), script]),
    )


def _answer(recommendation: Recommendation | None) -> tuple[str, str, list[str]]:
    """The recommendation as a headline, the rest of its first sentence and the further ones."""
    if recommendation is None:
        return "No recommendation", "There is no finished run to base one on; the list of runs says why.", []
    first, *more = recommendation.sentences
    head, colon, rest = first.partition(": ")
    if not colon or len(head) > 60:
        return first, "", more
    return head, rest[0].upper() + rest[1:], more


def _runner_up(of: Table, recommendation: Recommendation | None) -> str:
    """The runner-up with its numbers, as in the table."""
    row = next((r for r in of.rows if recommendation and r.method == recommendation.runner_up), None)
    if row is None:
        return ""
    said = [f"{row.method}: test {metric_name(of.metric)} {row.cells['metric'].text}{' %' * of.is_share}"]
    if "step" in row.cells and row.cells["step"].value is not None:
        said.append(f"{row.cells['step'].text} a step")
    if row.cells["trainable"].value is not None:
        said.append(f"{row.cells['trainable'].text} trained parameters")
    return ", ".join(said)


def _downloads(of: Table) -> list[dict[str, str]]:
    formats = [
        ("CSV", "comparison.csv", "text/csv", table.csv(of)),
        ("Markdown", "comparison.md", "text/markdown", table.markdown(of)),
        ("LaTeX", "comparison.tex", "application/x-tex", table.latex(of)),
    ]
    return [
        {
            "name": name,
            "file": file,
            "text": text,
            "uri": f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}",
        }
        for name, file, kind, text in formats
    ]


@cache
def style_sheet() -> str:
    """The page's CSS, both colour schemes."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """plotly.js as it can stand in a script element."""
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def content_policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: just these scripts, and no request to anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _write_whole(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(
            f"the report {path} can't be written: {error.strerror}; free space or choose another place"
        ) from None
