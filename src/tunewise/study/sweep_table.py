"""The runs of a sweep as rows, in CSV and JSON, and their means over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from tunewise.errors import StoreError
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.study.axes import AXES, Value, varying
from tunewise.study.plan import Plan, PlannedRun
from tunewise.text_format import pluralize

_ALWAYS = ("model", "data", "method", "rank", "alpha", "links", "learning_rate")
"""Axes that every table has, whether the runs differ on them or not; the seed comes last."""


@dataclass(frozen=True)
class SweepRow:
    """One run; None for what is not known (yet). `at`: its value on each axis of the table."""

    run: str
    status: str
    at: dict[str, Value]
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
class Setting:
    """All seeds of one setting; `at` is without the seed."""

    at: dict[str, Value]
    rows: list[SweepRow] = field(default_factory=list)

    @property
    def finished(self) -> list[SweepRow]:
        return [row for row in self.rows if row.status == "done" and row.test is not None]

    def mean(self, name: str) -> float | None:
        """Over the finished seeds; None where there are none, or where one lacks the value."""
        values = [getattr(row, name) for row in self.finished]
        return statistics.fmean(values) if values and None not in values else None

    def deviation(self, name: str) -> float | None:
        """Standard deviation over seeds (n - 1); None below two."""
        values = [getattr(row, name) for row in self.finished]
        return statistics.stdev(values) if len(values) > 1 and None not in values else None

    @property
    def standing(self) -> str:
        """'3 seeds', '2 of 3 seeds, 1 diverged'."""
        done, seeds = len(self.finished), pluralize(len(self.rows), "seed")
        others = Counter(row.status for row in self.rows if row.status != "done")
        words = [seeds if done == len(self.rows) else f"{done} of {seeds}"]
        return ", ".join([*words, *(f"{count} {status}" for status, count in others.items())])


def rows_of(plan: Plan, store: RunStore) -> list[SweepRow]:
    """What is in the store now, in the order of the plan."""
    differing = varying([run.spec for run in plan.runs])
    axes = [*_ALWAYS, *(axis for axis in differing if axis not in (*_ALWAYS, "seed")), "seed"]
    return [_row(run, store, {axis: AXES[axis](run.spec) for axis in axes}) for run in plan.runs]


def group_seeds(rows: Sequence[SweepRow]) -> list[Setting]:
    """The settings, in the order of their first runs, each with its seeds."""
    settings: dict[str, Setting] = {}
    for row in rows:
        at = {axis: value for axis, value in row.at.items() if axis != "seed"}
        settings.setdefault(json.dumps(at), Setting(at)).rows.append(row)
    return list(settings.values())


def best(settings: Sequence[Setting]) -> Setting | None:
    """The setting with the best mean on validation, of those that finished all seeds (if there are any such); the first
    of several. The test split has no say."""
    scored = [setting for setting in settings if setting.mean("validation") is not None]
    scored = [setting for setting in scored if len(setting.finished) == len(setting.rows)] or scored
    if not scored:
        return None
    sign = -1.0 if scored[0].finished[0].lower_is_better else 1.0
    return max(scored, key=lambda setting: sign * (setting.mean("validation") or 0.0))


def write_tables(folder: Path, rows: Sequence[SweepRow]) -> None:
    """`table.csv` and `table.json`, each whole or not at all."""
    names = [item.name for item in fields(SweepRow) if item.name not in ("run", "at")]
    content = [{"run": row.run, **row.at, **{name: getattr(row, name) for name in names}} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(content[0]) if content else ["run", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(content)
    write_atomically(folder / "table.csv", text.getvalue())
    write_atomically(folder / "table.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def _row(run: PlannedRun, store: RunStore, at: dict[str, Value]) -> SweepRow:
    try:
        record = store.record(run.id)
    except StoreError as error:
        return SweepRow(run.id, "unreadable", at, error=str(error))
    if record is None:
        begun = "unfinished" if store.folder(run.id).is_dir() else "to do"
        return SweepRow(run.id, "running" if store.is_locked(run.id) else begun, at)
    trainable = record.model.trainable if record.model else None
    facts = {"trainable": trainable, "seconds": record.seconds, "error": record.error}
    return SweepRow(record.id, record.status, at, **facts, **_scores(record))  # type: ignore[arg-type]


def _scores(record: RunRecord) -> dict[str, object]:
    results = record.results
    if results is None:
        return {}
    values: dict[str, object] = {
        "metric": results.metric,
        "lower_is_better": not results.higher_is_better,
        "gap": results.gap,
        "selected_epoch": results.selected_epoch,
    }
    for name, split in (("validation", results.validation), ("test", results.test), ("train", results.train)):
        score = split.metrics.get(results.metric)
        values[name] = score if score is not None and math.isfinite(score) else None  # JSON has no NaN
        values[f"{name}_loss"] = split.loss
    return values
