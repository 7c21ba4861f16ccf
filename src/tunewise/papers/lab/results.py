"""Runs an experiment and writes its result: `NAME/result.json` for programs, `NAME/plot.html` for people."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewise.errors import StoreError
from tunewise.number_format import seconds
from tunewise.pages import page as pages
from tunewise.pages.section import Panel
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Verdict, overall
from tunewise.papers.lab.figures import describe, figure
from tunewise.papers.lab.registry import Statement, get_statement, load
from tunewise.store.environment import device_name, environment
from tunewise.store.files import write_atomically
from tunewise.theory.bound import MARKS

SCHEMA = 2


@dataclass(frozen=True)
class Result:
    """A finished experiment. The verdict follows from the findings."""

    statement: Statement
    settings: LabSettings
    measurement: Measurement
    seconds: float
    versions: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        return overall(self.measurement.findings)


def run_experiment(name: str, settings: LabSettings) -> Result:
    """Runs it; `seconds` is wall-clock time. Raises `SpecError` for an unknown name."""
    run = load(name)
    start = time.perf_counter()
    measurement = run(settings)
    elapsed = time.perf_counter() - start
    here = environment()
    versions = {"tunewise": here.tunewise, "python": here.python, **here.versions, "device": device_name()}
    return Result(get_statement(name), settings, measurement, elapsed, versions)


def make_folder(folder: Path, name: str) -> Path:
    """Makes `folder`/NAME, before an experiment runs. Raises `StoreError` where that fails."""
    path = folder / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't make {path}: {error.strerror}; choose another folder with --out") from None
    return path


def write_result(result: Result, folder: Path) -> Path:
    """Writes both files into `folder`/NAME and returns that folder. Raises `StoreError` where that fails."""
    path = make_folder(folder, result.statement.name)
    try:
        write_atomically(path / "result.json", json.dumps(as_data(result), indent=1, ensure_ascii=False) + "\n")
        write_atomically(path / "plot.html", page(result))
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}; choose another folder with --out") from None
    return path


def as_data(result: Result) -> dict[str, Any]:
    """The result for JSON. Numbers that are not finite become null."""
    data: dict[str, Any] = _finite(
        {
            "schema": SCHEMA,
            "experiment": result.statement.name,
            "verdict": result.verdict,
            "statement": asdict(result.statement),
            "findings": [{**asdict(f), "verdict": f.verdict} for f in result.measurement.findings],
            "plots": [asdict(plot) for plot in result.measurement.plots],
            "notes": list(result.measurement.notes),
            "settings": asdict(result.settings),
            "seconds": result.seconds,
            "versions": result.versions,
        }
    )
    return data


def page(result: Result) -> str:
    """The offline page: theorem, expectation, verdict, findings, plots."""
    name = result.statement.name
    return pages.render_page(
        "experiment.html.jinja",
        Path(__file__).parent,
        title=name,
        subject=f"{result.statement.source}: {MARKS[result.statement.mark]}",
        result=result,
        rows=[finding_row(f) for f in result.measurement.findings],
        plots=[
            Panel(f"{name}-{number}", plot.title, plot.caption, describe(plot), figure(plot))
            for number, plot in enumerate(result.measurement.plots)
        ],
        took=seconds(result.seconds),
    )


def finding_row(finding: Finding) -> dict[str, str]:
    """The texts of a finding, for the page and the terminal."""
    is_point = finding.low == finding.high
    return {
        "what": finding.what,
        "value": _number(finding.value),
        "interval": "" if is_point else f"{_number(finding.low)} to {_number(finding.high)}",
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
