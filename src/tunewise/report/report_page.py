"""`report.html`: one offline file with the answer first and then everything it is based on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tunewise import number_format as numbers
from tunewise.advise.recommend import Recommendation
from tunewise.number_format import metric_name
from tunewise.pages import page as pages
from tunewise.pages.section import Section
from tunewise.report import answers_section, gap_predictors_section, noise_section, provenance, table, tuning_section
from tunewise.report.data import ReportData
from tunewise.report.panels import confusion_panels, cost_panels, curve_panels, gap_panel
from tunewise.report.rows import ComparisonTable, build_table
from tunewise.store.records import RunRecord


def write_report(path: Path, title: str, data: ReportData) -> None:
    """Write the report atomically; the same data give the same bytes. Raises `StoreError` where that fails."""
    pages.write_page(path, render(title, data))


def render(title: str, data: ReportData) -> str:
    """The page of `write_report` as text."""
    records, summaries, recommendation = data.records, data.summaries, data.recommendation
    metric = summaries[0].metric if summaries else "accuracy"
    comparison_table = build_table(summaries, recommendation, data.costs)
    confusions = confusion_panels(records, summaries, recommendation)
    return pages.render_page(
        "page.html.jinja",
        Path(__file__).parent,
        title=title,
        subject=provenance.subject(data.comparison, records),
        comparison=data.comparison,
        answer=_answer(recommendation),
        recommendation=recommendation,
        runner_up=_runner_up(comparison_table, recommendation),
        marks=data.marks,
        cost_panels=cost_panels(summaries, data.costs, recommendation, data.marks),
        table=comparison_table,
        downloads=_downloads(comparison_table),
        curve_panels=curve_panels(records, data.histories, summaries, data.marks),
        gap_panel=gap_panel(summaries, data.marks),
        gap_sources=provenance.gap_sources(records),
        sections=build_sections(data),
        confusions=[p for p in confusions if not p.collapsed],
        collapsed_confusions=[p for p in confusions if p.collapsed],
        classes=next((len(r.data.labels) for r in records if r.data), 0),
        run_columns=run_columns(metric, comparison_table.is_share),
        runs=records,
        run_numbers={r.id: run_numbers(r, metric) for r in records},
        links=run_links(records, data.folders),
        facts=provenance.facts(data.comparison, records, data.costs),
    )


def _answer(recommendation: Recommendation | None) -> tuple[str, list[str]]:
    """The recommendation as a headline, and its sentences without that."""
    if recommendation is None:
        return "No recommendation", ["There is no finished run to base one on; the list of runs says why."]
    head, colon, rest = recommendation.answer.partition(": ")
    if not colon or len(head) > 60:
        return recommendation.answer, [s for s in recommendation.sentences if s != recommendation.answer]
    rest = rest[0].upper() + rest[1:]
    return head, [rest if s == recommendation.answer else s for s in recommendation.sentences]


def _runner_up(shown: ComparisonTable, recommendation: Recommendation | None) -> str:
    """The runner-up with its numbers, as in the table."""
    row = next((r for r in shown.rows if recommendation and r.method == recommendation.runner_up), None)
    if row is None:
        return ""
    parts = [f"{row.method}: test {metric_name(shown.metric)} {row.cells['metric'].text}{' %' * shown.is_share}"]
    if "step" in row.cells and row.cells["step"].value is not None:
        parts.append(f"{row.cells['step'].text} a step")
    if row.cells["trainable"].value is not None:
        parts.append(f"{row.cells['trainable'].text} trained parameters")
    return ", ".join(parts)


def _downloads(rows: ComparisonTable) -> list[dict[str, str]]:
    formats = [
        ("CSV", "comparison.csv", "text/csv", table.csv(rows)),
        ("Markdown", "comparison.md", "text/markdown", table.markdown(rows)),
        ("LaTeX", "comparison.tex", "application/x-tex", table.latex(rows)),
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


def build_sections(data: ReportData) -> list[Section]:
    """All sections that have something to show."""
    of_measures = []
    for measure in data.measures:
        section_data = data.section_data(measure)
        of_measures.append(measure.section(section_data) if section_data else None)
    sections = [
        noise_section.section(data),
        answers_section.section(data),
        *of_measures,
        gap_predictors_section.section(data),
        tuning_section.section(data),
    ]
    return [section for section in sections if section is not None]


def run_columns(metric: str, share: bool = True) -> list[str]:
    """Titles of the numbers of a run."""
    unit = ", %" * share
    return [f"test {metric_name(metric)}{unit}", "test loss", "train loss", "gap", "epoch kept", "training time"]


def run_numbers(record: RunRecord, metric: str) -> list[str]:
    """The numbers of a run, as many as `run_columns`."""
    results = record.results
    if results is None:
        return [*[numbers.MISSING] * 5, numbers.seconds(record.seconds)]
    main = results.test.metrics.get(metric)
    share = numbers.is_share(metric, metric not in results.lower_is_better)
    return [
        numbers.MISSING if main is None else numbers.score(main, share),
        numbers.nats(results.test.loss),
        numbers.nats(results.train.loss),
        numbers.nats(results.gap),
        f"{results.selected_epoch:g}",
        numbers.seconds(record.seconds),
    ]


def run_links(records: Sequence[RunRecord], folders: Mapping[str, str]) -> dict[str, str]:
    """Relative addresses of the runs' folders, without scheme or host; empty where a folder is unknown."""
    links = {}
    for record in records:
        folder = folders.get(record.id, "")
        parts = [part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")]
        links[record.id] = "./" + quote("/".join(parts)) + "/" if folder else ""
    return links
