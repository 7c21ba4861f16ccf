"""A result on disk: `NAME/result.json` for programs, `NAME/plot.html` for people (offline, one file)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunewise.errors import StoreError
from tunewise.number_format import seconds
from tunewise.pages import page as pages
from tunewise.pages.section import Panel
from tunewise.papers.lab.contract import Finding, Result
from tunewise.papers.lab.figures import figure, in_words
from tunewise.store.files import write_atomically
from tunewise.theory.bound import MARKS

SCHEMA = 1


def make_place(folder: Path, name: str) -> Path:
    """`folder`/NAME, made: before an experiment runs, not after. Raises `StoreError` where that can't be done."""
    place = folder / name
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{place} can't be made: {error.strerror}; give another folder with --out") from None
    return place


def write_result(result: Result, folder: Path) -> Path:
    """Writes both files into `folder`/NAME and returns it. Raises `StoreError` where that can't be done."""
    place = make_place(folder, result.statement.name)
    try:
        write_atomically(place / "result.json", json.dumps(as_data(result), indent=1, ensure_ascii=False) + "\n")
        write_atomically(place / "plot.html", page(result))
    except OSError as error:
        raise StoreError(f"{place} can't be written: {error.strerror}; give another folder with --out") from None
    return place


def as_data(result: Result) -> dict[str, Any]:
    """The result as JSON takes it: names of the dataclasses' fields, verdicts beside the numbers. null
    stands for what is not finite: a number that could not be measured, an expected interval's missing end."""
    findings = [{**asdict(f), "verdict": f.verdict} for f in result.outcome.findings]
    found: dict[str, Any] = _finite(
        {
            "schema": SCHEMA,
            "experiment": result.statement.name,
            "verdict": result.verdict,
            "statement": asdict(result.statement),
            "findings": findings,
            "plots": [asdict(plot) for plot in result.outcome.plots],
            "words": list(result.outcome.words),
            "speedups": [asdict(s) for s in result.outcome.speedups],
            "settings": asdict(result.settings),
            "seconds": result.seconds,
            "versions": result.versions,
        }
    )
    return found


def page(result: Result) -> str:
    """The offline page: theorem, expectation, verdict, plots, table of findings."""
    drawn = zip(result.outcome.plots, in_words(result.outcome.plots))
    return pages.render_page(
        "experiment.html.jinja",
        Path(__file__).parent,
        title=result.statement.name,
        subject=f"{result.statement.source}: {MARKS[result.statement.mark]}",
        result=result,
        rows=[finding_row(f) for f in result.outcome.findings],
        plots=[
            Panel(f"{result.statement.name}-{place}", plot.title, plot.caption, words, figure(plot))
            for place, (plot, words) in enumerate(drawn)
        ],
        took=seconds(result.seconds),
    )


def finding_row(finding: Finding) -> dict[str, str]:
    """A finding as people read it; also the console's."""
    spread = "" if finding.low == finding.high else f"{_number(finding.low)} to {_number(finding.high)}"
    return {
        "what": finding.what,
        "value": _number(finding.value),
        "interval": spread,
        "expected": _expected(finding.expected),
        "verdict": finding.verdict or "reported",
        "note": finding.note,
    }


def _expected(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    if low == high:
        return _number(low)
    if math.isinf(low):
        return f"at most {_number(high)}"
    return f"at least {_number(low)}" if math.isinf(high) else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Four digits; whole numbers whole."""
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
    return text.replace("-", "−")


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    return [_finite(value) for value in node] if isinstance(node, list | tuple) else node
