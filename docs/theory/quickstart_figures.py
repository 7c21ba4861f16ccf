"""Write the quickstart's figures into the pages beside this file.

    tunewise compare --preset quickstart --measures bounds,alignment,laziness
    python docs/theory/quickstart_figures.py runs

Reads the runs of seed 0 and puts a table between the marks `<!-- quickstart -->` and `<!-- end -->` of each page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewise.measures.alignment.compute import AlignmentResult
from tunewise.measures.bounds.compute import BoundsResult, bounds_of_run
from tunewise.measures.bounds.theorems import BoundLine
from tunewise.measures.collect import read_measures, result_of
from tunewise.measures.finished import FinishedRun
from tunewise.measures.laziness.compute import LazinessResult
from tunewise.quiet import quiet_libraries
from tunewise.registry import MEASURES
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task

MARKS = re.compile(r"(<!-- quickstart -->\n).*?(<!-- end -->)", re.DOTALL)
METHODS = ("head", "fft", "lora", "asym", "cla", "paca")


@dataclass(frozen=True)
class Run:
    record: RunRecord
    bounds: BoundsResult
    alignment: AlignmentResult | None
    laziness: LazinessResult | None

    def line(self, key: str) -> BoundLine | None:
        return self.bounds.line(key)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def value(run: Run, key: str) -> str:
    line = run.line(key)
    if line is None:
        return "–"
    if line.units in ("rank", "parameters"):
        return f"{line.value:,}"
    return f"{line.value:.3g}" if line.log_value is None or line.log_value < 12 else f"e^{line.log_value:.1f}"


def measured(run: Run) -> str:
    return f"{run.bounds.gap.gap:.3f}"


def from_bounds(*columns: tuple[str, str], of_gap: bool = True) -> Callable[[Sequence[Run]], str]:
    """A page's table of the lines with these keys, each under its title; the measured (clipped) gap comes first."""

    titles = [title for _, title in columns]

    def page(runs: Sequence[Run]) -> str:
        shown = [run for run in runs if any(run.line(key) for key, _ in columns)]
        if not of_gap:
            return table(["method", *titles], [[label(run), *(value(run, key) for key, _ in columns)] for run in shown])
        rows = [[label(run), measured(run), *(value(run, key) for key, _ in columns)] for run in shown]
        ceiling = shown[0].bounds.gap.range
        return table(["method", "measured gap", *titles], rows) + (
            f"\nIn nats; above M = {ceiling:.2f} a bound is vacuous.\n"
        )

    return page


def ranks(runs: Sequence[Run]) -> str:
    shown = [run for run in runs if run.laziness is not None]
    first = shown[-1]
    said = ", ".join(value(first, key) for key in ("rank-exists", "rank-no-spurious", "rank-generic"))
    rows = [
        [label(run), *(part(getattr(run.laziness.selected, name).distance) for name in ("backbone", "train", "test"))]
        for run in shown
    ]
    header = ["method", "backbone, training examples", "with the head, training", "with the head, test"]
    return (
        f"The three ranks are {said} for K N = 5 x 256. Distance from the linearisation at the selected epoch:\n\n"
        + table(header, rows)
    )


def lora_one(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        if run.alignment is None:
            continue
        cells = [label(run)]
        for side in ("left", "right"):
            found = [angle for angle in getattr(run.alignment.selected, f"{side}_mean") if angle is not None]
            chance = [getattr(layer, f"chance_{side}").mean for layer in run.alignment.layers]
            cells.append(f"{sum(found) / len(found):.1f} (chance {sum(chance) / len(chance):.1f})")
        rows.append(cells)
    return "Mean angle, in degrees, over the layers, of the selected epoch's weights:\n\n" + table(
        ["method", "left (outputs)", "right (inputs)"], rows
    )


def part(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def label(run: Run) -> str:
    return run.record.spec.method.label


PAGES: dict[str, Callable[[Sequence[Run]], str]] = {
    "information.md": from_bounds(
        ("parameters", "p"), ("information", "bound (A)"), ("information-head", "head counted")
    ),
    "perturbation.md": from_bounds(
        ("phi-dw", "Phi_dW"), ("phi-w0", "Phi_W0"), ("theorem-6-hoeffding", "(C), Hoeffding")
    ),
    "pac-bayes.md": from_bounds(("pac-bayes", "PAC-Bayes (Theorem 5)"), ("hoeffding", "Hoeffding, before training")),
    "random-factor.md": from_bounds(
        ("random-factor-upper", "at most"), ("random-factor-lower", "hardest problem: at least")
    ),
    "step-size.md": from_bounds(("safe-step", "largest safe rate of SGD"), of_gap=False),
    "ranks.md": ranks,
    "lora-one.md": lora_one,
}


def main(root: Path) -> None:
    quiet_libraries()
    store = RunStore(root)
    runs = []
    for run_id in store.ids():
        record = store.record(run_id)
        if record is None or record.status != "done" or record.spec.seed != 0:
            continue
        folder = (root / run_id).resolve()
        run = FinishedRun(record, folder, build_task(record.spec), folder.parent / "cache")
        steps = record.spec.method.name in ("cla", "paca")
        print(f"bounds of {record.spec.method.label} ...", flush=True)
        bounds = bounds_of_run(run, lambda: None, with_curvature=steps)
        runs.append(Run(record, bounds, stored(store, record, "alignment"), stored(store, record, "laziness")))
    runs.sort(key=lambda run: METHODS.index(label(run)))
    for name, page in PAGES.items():
        path = Path(__file__).parent / name
        text, found = MARKS.subn(lambda m, page=page: m[1] + page(runs) + m[2], path.read_text(encoding="utf-8"))
        if not found:
            raise SystemExit(f"{name} has no marks for its figures")
        path.write_text(text, encoding="utf-8")


def stored(store: RunStore, record: RunRecord, name: str) -> Any:
    """The result of a measure, None where it was not computed."""
    measured = read_measures([name], [record], store)[name].get(record.id)
    return None if measured is None else result_of(MEASURES.get(name), measured)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
