"""The results of a sweep: a row for each run, means over seeds, heat maps over two axes; as CSV and as a page."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunewise import number_format as numbers
from tunewise.number_format import metric_name
from tunewise.pages.figures import heat_map
from tunewise.pages.page import write_sections
from tunewise.pages.section import Panel, Section, Table
from tunewise.spec import RunSpec
from tunewise.spec.axes import AXES, Value, shown
from tunewise.store.files import write_atomically
from tunewise.store.records import RunRecord
from tunewise.text_format import pluralize

ALWAYS = ("model", "data", "method", "rank", "alpha", "links", "learning_rate")
"""Axes that every table has, whether the runs differ on them or not; the seed comes last."""
_RIGHT = (
    "learning_rate",
    "alpha / rank",
    "alpha",
    "restart_every",
    "links",
    "epochs",
    "batch_size",
    "train_size",
)
"""The first of these axes that varies goes to the right; the rank goes downwards."""
_SPLITS = ("validation", "test", "train")
_FACTS = ("trainable", "seconds", "metric", "gap", "selected_epoch", *_SPLITS, *(f"{name}_loss" for name in _SPLITS))


@dataclass(frozen=True)
class SweepRow:
    """One run: its status, its value on each axis, and what its record has."""

    run: str
    status: str
    at: dict[str, Value]
    facts: dict[str, Value] = field(default_factory=dict)
    lower_is_better: bool = False
    error: str | None = None

    @classmethod
    def of(cls, spec: RunSpec, axes: Sequence[str], status: str, record: RunRecord | None) -> SweepRow:
        """The row of a run; `status` is that of a run without a record."""
        at = {axis: AXES[axis](spec) for axis in (*axes, "seed")}
        if record is None:
            return cls(spec.id, status, at)
        facts: dict[str, Value] = {"seconds": record.seconds}
        if record.model is not None:
            facts["trainable"] = record.model.trainable
        results = record.results
        if results is None:
            return cls(spec.id, record.status, at, facts, error=record.error)
        facts |= {"metric": results.metric, "gap": results.gap, "selected_epoch": results.selected_epoch}
        for name in _SPLITS:
            split = getattr(results, name)
            facts |= {name: split.metrics.get(results.metric), f"{name}_loss": split.loss}
        return cls(spec.id, record.status, at, facts, not results.higher_is_better, record.error)


@dataclass(frozen=True)
class Setting:
    """All seeds of one setting; `at` is without the seed."""

    at: dict[str, Value]
    rows: list[SweepRow] = field(default_factory=list)

    @property
    def finished(self) -> list[SweepRow]:
        return [row for row in self.rows if row.status == "done"]

    def values(self, name: str) -> list[float]:
        """Of the finished seeds; empty where one lacks the value."""
        values = [row.facts.get(name) for row in self.finished]
        known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
        return known if len(known) == len(values) else []

    def mean(self, name: str) -> float | None:
        """Over the finished seeds; None where there are none, or where one lacks the value."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def score(self, name: str) -> str:
        """The mean of a metric as text."""
        mean = self.mean(name)
        return numbers.MISSING if mean is None else numbers.score(mean, self.is_share)

    @property
    def deviation(self) -> str:
        """Standard deviation of the test metric over seeds (n - 1), as text."""
        values = self.values("test")
        if len(values) < 2:
            return numbers.MISSING
        return numbers.score(statistics.stdev(values), self.is_share)

    @property
    def lower_is_better(self) -> bool:
        return any(row.lower_is_better for row in self.finished)

    @property
    def is_share(self) -> bool:
        """Whether the metric is shown in per cent."""
        return all(numbers.is_share(str(row.facts.get("metric")), not row.lower_is_better) for row in self.finished)

    @property
    def standing(self) -> str:
        """'3 seeds', '2 of 3 seeds, 1 diverged'."""
        done, seeds = len(self.finished), pluralize(len(self.rows), "seed")
        others = Counter(row.status for row in self.rows if row.status != "done")
        words = [seeds if done == len(self.rows) else f"{done} of {seeds}"]
        return ", ".join([*words, *(f"{count} {status}" for status, count in others.items())])


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
    sign = -1.0 if scored[0].lower_is_better else 1.0
    return max(scored, key=lambda setting: sign * (setting.mean("validation") or 0.0))


def write_sweep(folder: Path, rows: Sequence[SweepRow], axes: Sequence[str], title: str) -> Path:
    """Write `table.csv` and the page, whose path is returned; `axes`: those on which the runs differ."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["run", "status", *rows[0].at, *_FACTS, "error"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"run": row.run, "status": row.status, "error": row.error, **row.at, **row.facts} for row in rows)
    write_atomically(folder / "table.csv", text.getvalue())
    settings = group_seeds(rows)
    axes = [axis for axis in axes if axis != "seed"] or ["method"]
    done = sum(row.status == "done" for row in rows)
    sections = [section for section in (heat_maps(settings, axes), _table(settings, axes)) if section is not None]
    path = folder / "sweep.html"
    write_sections(path, title=title, subject=f"{done} of {len(rows)} runs finished", sections=sections)
    return path


def heat_maps(settings: Sequence[Setting], axes: Sequence[str]) -> Section | None:
    """Test metric over two axes, a panel for each setting of the others; None where fewer than two vary."""
    finished = [setting for setting in settings if setting.finished]
    if len(axes) < 2 or not finished:
        return None
    others = [axis for axis in (*_RIGHT, *axes) if axis in axes and axis != "rank"]
    right = next((axis for axis in others if axis != "method"), others[0])
    down = "rank" if "rank" in axes else next(axis for axis in others if axis != right)
    facets: dict[str, list[Setting]] = {}
    for setting in settings:
        words = [f"{metric_name(axis)} {shown(setting.at[axis])}" for axis in axes if axis not in (right, down)]
        facets.setdefault(", ".join(words), []).append(setting)
    panels = [
        _panel(f"map-figure-{place}", name, facet, right, down)
        for place, (name, facet) in enumerate(facets.items())
        if any(setting.finished for setting in facet) and all(len(_values(facet, axis)) > 1 for axis in (right, down))
    ]
    if not panels:
        return None
    direction = "less" if finished[0].lower_is_better else "more"
    text = (
        f"Test {_metric(settings)}, mean over seeds; {direction} is better, and darker. The frame is the setting with "
        "the best validation mean in its map: the test split had no say in it."
    )
    return Section("maps", f"{metric_name(right)} × {metric_name(down)}", paragraphs=[text], panels=panels)


def color_range(values: Sequence[float], lower_is_better: bool) -> tuple[float, float]:
    """Where the colours begin and end, negated where less is better: up to the best, and down to the worst, but no
    further than four times as far as the median, so that a few failures don't make the rest look alike."""
    signed = sorted((-v if lower_is_better else v) for v in values)
    if not signed:
        return 0.0, 1.0
    top, median = signed[-1], signed[len(signed) // 2]
    return max(signed[0], top - 4 * (top - median)) if top > median else signed[0], top


def _panel(key: str, title: str, facet: list[Setting], right: str, down: str) -> Panel:
    facet = [setting for setting in facet if None not in (setting.at[right], setting.at[down])]
    columns, rows = _values(facet, right), _values(facet, down)
    at = {(setting.at[down], setting.at[right]): setting for setting in facet}
    grid = [[at.get((row, column), Setting({})) for column in columns] for row in rows]
    sign = -1 if any(setting.lower_is_better for setting in facet) else 1
    means = [[setting.mean("test") for setting in line] for line in grid]
    low, high = color_range([mean for line in means for mean in line if mean is not None], sign < 0)
    chosen = best(facet)
    caption, framed = "", None
    if chosen is not None:
        where = f"{metric_name(down)} {shown(chosen.at[down])}, {metric_name(right)} {shown(chosen.at[right])}"
        caption = f"Best on validation: {where}: {chosen.score('test')}{' %' * (sign > 0)}."
        framed = rows.index(chosen.at[down]), columns.index(chosen.at[right])
    figure = heat_map(
        [shown(row) for row in rows],
        [shown(column) for column in columns],
        [[None if mean is None else sign * mean for mean in line] for line in means],
        [[_cell(setting) for setting in line] for line in grid],
        [[_hover(setting) for setting in line] for line in grid],
        row_title=metric_name(down),
        column_title=metric_name(right),
        low=low,
        high=high,
        framed=framed,
    )
    return Panel(key, title or "test", caption, f"Test over {down} and {right}. {caption}", figure)


def _table(settings: Sequence[Setting], axes: Sequence[str]) -> Section:
    unit = ", %" * all(setting.is_share for setting in settings)
    scores = [f"{split} {_metric(settings)}{unit}" for split in ("validation", "test")]
    chosen = best(settings)
    lines = []
    for setting in settings:
        gap, seconds = setting.mean("gap"), setting.mean("seconds")
        trained = setting.mean("trainable")
        lines.append(
            [
                *(shown(setting.at[axis]) for axis in axes),
                setting.score("validation") + (" (best)" if setting is chosen else ""),
                setting.score("test"),
                setting.deviation,
                numbers.MISSING if gap is None else numbers.nats(gap),
                numbers.short_count(None if trained is None else round(trained)),
                numbers.seconds(seconds),
                setting.standing,
            ]
        )
    errors = sorted({row.error for setting in settings for row in setting.rows if row.error})
    notes = ["Means over seeds; ± sd: their standard deviation. Every run: table.csv.", *errors[:8]]
    titles = [*map(metric_name, axes), *scores, "± sd", "gap, nats", "trained", "time", "runs"]
    return Section("settings", "Settings", tables=[Table(titles, lines)], notes=notes)


def _metric(settings: Sequence[Setting]) -> str:
    names = [row.facts["metric"] for setting in settings for row in setting.finished if "metric" in row.facts]
    return metric_name(str(names[0])) if names else "metric"


def _values(settings: Sequence[Setting], axis: str) -> list[Value]:
    values = {setting.at[axis] for setting in settings} - {None}
    are_numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values, key=lambda v: float(v) if are_numbers else str(v))  # type: ignore[arg-type]


def _cell(setting: Setting) -> str:
    return setting.score("test") if setting.finished or not setting.rows else setting.rows[0].status


def _hover(setting: Setting) -> str:
    if not setting.rows:
        return "not run"
    scores = f"validation {setting.score('validation')}, test {setting.score('test')} ± {setting.deviation}"
    return f"{scores}\n{setting.standing}" if setting.finished else setting.standing
