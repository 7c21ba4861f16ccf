"""What the runs of a sweep came to: a row a run, as CSV and JSON, and their means over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunewise.errors import StoreError
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.study.axes import AXES, Value, varying
from tunewise.study.plan import Plan, PlannedRun
from tunewise.text_format import pluralize

FIXED = ("model", "data", "method", "rank", "alpha", "links", "learning_rate", "seed")
"""Axes that every table has, whether the runs differ on them or not."""


@dataclass(frozen=True)
class SweepRow:
    """One run; None for what is not known (yet)."""

    run: str
    status: str
    at: dict[str, Value]
    """Where it stands on each axis that the table has."""
    metric: str | None = None
    lower_is_better: bool = False
    validation: float | None = None
    test: float | None = None
    train: float | None = None
    validation_loss: float | None = None
    test_loss: float | None = None
    train_loss: float | None = None
    gap: float | None = None
    selected_epoch: int | None = None
    trainable: int | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Cell:
    """All seeds of one setting."""

    at: dict[str, Value]
    """Without the seed."""
    rows: list[SweepRow] = field(default_factory=list)

    @property
    def finished(self) -> list[SweepRow]:
        return [row for row in self.rows if row.status == "done" and row.test is not None]

    def mean(self, name: str) -> float | None:
        """Over the finished seeds; None where there are none, or where not all of them know it."""
        values = [getattr(row, name) for row in self.finished]
        return statistics.fmean(values) if values and None not in values else None

    def deviation(self, name: str) -> float | None:
        """Standard deviation over seeds (n - 1); None below two."""
        values = [getattr(row, name) for row in self.finished]
        return statistics.stdev(values) if len(values) > 1 and None not in values else None

    @property
    def standing(self) -> str:
        """'3 seeds', '2 of 3 seeds, 1 diverged'."""
        done, of = len(self.finished), len(self.rows)
        others: dict[str, int] = {}
        for row in self.rows:
            if row.status != "done":
                others[row.status] = others.get(row.status, 0) + 1
        seeds = pluralize(of, "seed")
        return ", ".join([seeds if done == of else f"{done} of {seeds}", *(f"{n} {s}" for s, n in others.items())])


def rows_of(plan: Plan, store: RunStore) -> list[SweepRow]:
    """What stands in the store now, in the plan's order."""
    axes = columns(plan)
    return [_row(run, store, axes) for run in plan.runs]


def columns(plan: Plan) -> list[str]:
    """The axes of the table: those that every table has, and those on which these runs differ."""
    found = varying([run.spec for run in plan.runs])
    return [*(axis for axis in FIXED if axis != "seed"), *(axis for axis in found if axis not in FIXED), "seed"]


def cells(rows: Sequence[SweepRow]) -> list[Cell]:
    """The settings, in the order of their first runs, each with its seeds."""
    found: dict[str, Cell] = {}
    for row in rows:
        at = {axis: value for axis, value in row.at.items() if axis != "seed"}
        found.setdefault(json.dumps(at), Cell(at)).rows.append(row)
    return list(found.values())


def best(among: Sequence[Cell]) -> Cell | None:
    """The setting with the best mean on validation, of those whose seeds all finished (if there are any such); the
    first of several. The test split has no say."""
    whole = _in_question(among)
    if not whole:
        return None
    sign = -1.0 if whole[0].finished[0].lower_is_better else 1.0
    return max(whole, key=lambda cell: sign * (cell.mean("validation") or 0.0))


def as_good(among: Sequence[Cell], chosen: Cell) -> str:
    """How many other settings have the best one's mean on validation: '1 more setting'; empty for none."""
    ties = sum(cell.mean("validation") == chosen.mean("validation") for cell in _in_question(among)) - 1
    return pluralize(ties, "more setting") if ties else ""


def _in_question(among: Sequence[Cell]) -> list[Cell]:
    known = [cell for cell in among if cell.mean("validation") is not None]
    return [cell for cell in known if len(cell.finished) == len(cell.rows)] or known


def write_tables(folder: Path, plan: Plan, rows: Sequence[SweepRow]) -> None:
    """`table.csv` and `table.json`, each whole or not at all."""
    axes = columns(plan)
    names = [name for name in SweepRow.__dataclass_fields__ if name != "at"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *axes, *names[1:]])
    for row in rows:
        writer.writerow([row.run, *(row.at[axis] for axis in axes), *(getattr(row, name) for name in names[1:])])
    write_atomically(folder / "table.csv", text.getvalue())
    content = [{**{name: getattr(row, name) for name in names}, **row.at} for row in rows]
    write_atomically(folder / "table.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def _row(run: PlannedRun, store: RunStore, axes: Sequence[str]) -> SweepRow:
    at = {axis: AXES[axis](run.spec) for axis in axes}
    try:
        record = store.record(run.id)
    except StoreError as error:
        return SweepRow(run.id, "unreadable", at, error=str(error))
    if record is None:
        held = store.is_locked(run.id)
        begun = store.folder(run.id).is_dir()
        return SweepRow(run.id, "running" if held else "unfinished" if begun else "to do", at)
    return _of_record(record, at)


def _of_record(record: RunRecord, at: dict[str, Value]) -> SweepRow:
    results = record.results
    row = SweepRow(
        record.id,
        record.status,
        at,
        trainable=record.model.trainable if record.model else None,
        seconds=record.seconds,
        error=record.error,
    )
    if results is None:
        return row
    return SweepRow(
        **{
            **asdict(row),
            "metric": results.metric,
            "lower_is_better": not results.higher_is_better,
            "validation": _number(results.validation.metrics.get(results.metric)),
            "test": _number(results.test.metrics.get(results.metric)),
            "train": _number(results.train.metrics.get(results.metric)),
            "validation_loss": results.validation.loss,
            "test_loss": results.test.loss,
            "train_loss": results.train.loss,
            "gap": results.gap,
            "selected_epoch": results.selected_epoch,
        }
    )


def _number(value: float | None) -> float | None:
    """None for what JSON has no word for: a metric that is not defined on a split."""
    return None if value is None or not math.isfinite(value) else value
