"""`sweep.html`: what the runs of a sweep came to, as heat maps over two axes and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunewise import number_format as numbers
from tunewise.pages.figures import heat_map
from tunewise.pages.page import write_sections
from tunewise.pages.section import Panel, Section, Table
from tunewise.study.axes import Value, shown
from tunewise.study.plan import Plan
from tunewise.study.sweep_table import Cell, SweepRow, as_good, best, cells

_PREFERRED = ("learning_rate", "alpha / rank", "alpha", "restart_every", "links", "epochs", "batch_size", "train_size")
"""Axes that go to the right, the first of them that varies; the rank goes downwards."""
_MOST_PANELS = 24
_MOST_ROWS = 400


def write_sweep_page(folder: Path, plan: Plan, rows: Sequence[SweepRow], title: str) -> Path:
    """The page beside the sweep's tables."""
    settings = [_with_ratio(cell) for cell in cells(rows)]
    axes = _axes(settings)
    done = sum(row.status == "done" for row in rows)
    sections = [_table(settings, axes)]
    maps = heat_maps(settings, axes)
    if maps is not None:
        sections.insert(0, maps)
    path = folder / "sweep.html"
    write_sections(path, title=title, subject=f"{done} of {len(rows)} runs finished", sections=sections)
    return path


def heat_maps(settings: Sequence[Cell], axes: Sequence[str]) -> Section | None:
    """Test metric over two axes, a panel for each setting of the others; None where fewer than two vary."""
    pair = _pair(axes)
    metric = next((row.metric for cell in settings for row in cell.finished), None)
    if pair is None or metric is None:
        return None
    right, down = pair
    others = [axis for axis in axes if axis not in pair and not (axis == "alpha" and "alpha / rank" in pair)]
    facets: dict[tuple[Value, ...], list[Cell]] = {}
    for cell in settings:
        facets.setdefault(tuple(cell.at.get(axis) for axis in others), []).append(cell)
    drawn = {place: found for place, found in facets.items() if _spans(found, pair)}
    panels = [_panel(i, list(zip(others, place)), found, pair) for i, (place, found) in enumerate(drawn.items())]
    lower = next(row.lower_is_better for cell in settings for row in cell.finished)
    notes = []
    if len(panels) > _MOST_PANELS:
        notes.append(f"The first {_MOST_PANELS} of {len(panels)} maps; the table has all settings.")
    if len(facets) > len(drawn):
        notes.append(f"Settings that do not vary in {down} and {right} are in the table alone.")
    seeds = max(len(cell.rows) for cell in settings)
    words = [
        f"Test {_name(metric)}{', mean over seeds' if seeds > 1 else ''}; {'less' if lower else 'more'} is better, and "
        "darker. The frame is the setting with the best validation mean in its map: the test split had no say in it."
    ]
    return (
        Section(
            key="maps",
            title=f"{right} × {down}".replace("_", " "),
            paragraphs=words,
            panels=panels[:_MOST_PANELS],
            notes=notes,
        )
        if panels
        else None
    )


def _panel(place: int, where: list[tuple[str, Value]], found: list[Cell], pair: tuple[str, str]) -> Panel:
    right, down = pair
    columns, rows = _values(found, right), _values(found, down)
    at = {(cell.at[down], cell.at[right]): cell for cell in found}
    grid = [[at.get((row, column)) for column in columns] for row in rows]
    known = [row for cell in found for row in cell.finished]
    lower, metric = known[0].lower_is_better, known[0].metric or ""
    share = _is_share(found)
    values = [[None if cell is None else cell.mean("test") for cell in line] for line in grid]
    low, high = scale([value for line in values for value in line if value is not None], lower)
    chosen = best(found)
    marked = next(
        ((i, j) for i, line in enumerate(grid) for j, c in enumerate(line) if c is not None and c is chosen), None
    )
    title = ", ".join(f"{axis.replace('_', ' ')} {shown(value)}" for axis, value in where) or f"test {_name(metric)}"
    unit = " %" if share else ""
    said = ""
    if chosen is not None and (mean := chosen.mean("test")) is not None:
        said = (
            f"{down.replace('_', ' ')} {shown(chosen.at[down])}, {right.replace('_', ' ')} {shown(chosen.at[right])}: "
            f"{numbers.score(mean, share)}{unit}"
        )
        if more := as_good(found, chosen):
            said += f"; as good there: {more}"
    figure = heat_map(
        [shown(row) for row in rows],
        [shown(column) for column in columns],
        [[None if value is None else (-value if lower else value) for value in line] for line in values],
        [[_text(cell, share) for cell in line] for line in grid],
        [[_hover(cell, share, unit) for cell in line] for line in grid],
        row_title=down.replace("_", " "),
        column_title=right.replace("_", " "),
        low=low,
        high=high,
        framed=marked,
    )
    caption = f"Best on validation: {said}." if said else ""
    words = f"Test {_name(metric)} over {down} and {right}. {caption}"
    return Panel(f"map-figure-{place}", title, caption, words, figure)


def scale(values: Sequence[float], lower_is_better: bool) -> tuple[float, float]:
    """Where the colours begin and end, with the sign turned where less is better: up to the best, and down to the
    worst, but no further than four times as far as the median, so that a few failures don't make the rest look
    alike."""
    signed = sorted((-v if lower_is_better else v) for v in values)
    if not signed:
        return 0.0, 1.0
    top, median = signed[-1], signed[len(signed) // 2]
    return max(signed[0], top - 4 * (top - median)) if top > median else signed[0], top


def _table(settings: Sequence[Cell], axes: Sequence[str]) -> Section:
    names = ["alpha" if axis == "alpha / rank" else axis for axis in axes] or ["method"]
    share = _is_share(settings)
    metric = next((_name(row.metric or "") for cell in settings for row in cell.finished), "metric")
    unit = ", %" if share else ""
    columns = [
        *(axis.replace("_", " ") for axis in names),
        f"validation {metric}{unit}",
        f"test {metric}{unit}",
        "± sd",
        "gap, nats",
        "trained",
        "seconds",
        "runs",
    ]
    chosen = best(settings)
    lines = []
    for cell in settings[:_MOST_ROWS]:
        trained = next((row.trainable for row in cell.finished), None)
        seconds = cell.mean("seconds")
        deviation, gap = cell.deviation("test"), cell.mean("gap")
        lines.append(
            [
                *(shown(cell.at.get(axis)) for axis in names),
                _score(cell.mean("validation"), share) + (" (best)" if cell is chosen else ""),
                _score(cell.mean("test"), share),
                _score(deviation, share),
                numbers.MISSING if gap is None else numbers.nats(gap),
                numbers.short_count(trained),
                numbers.MISSING if seconds is None else f"{seconds:.1f}",
                cell.standing,
            ]
        )
    errors = {row.error for cell in settings for row in cell.rows if row.error}
    notes = ["Means over seeds; ± sd: their standard deviation. Every run: table.csv, table.json."]
    if len(settings) > _MOST_ROWS:
        notes.append(f"The first {_MOST_ROWS} of {len(settings)} settings; table.csv has all.")
    if chosen is not None and (more := as_good(settings, chosen)):
        notes.append(f"As good on validation as the one marked best: {more}.")
    notes += sorted(errors)[:8]
    return Section(key="settings", title="Settings", tables=[Table(columns, lines)], notes=notes)


def _with_ratio(cell: Cell) -> Cell:
    alpha, rank = cell.at.get("alpha"), cell.at.get("rank")
    if not isinstance(alpha, int | float) or not isinstance(rank, int):
        return cell
    return Cell({**cell.at, "alpha / rank": float(alpha) / rank}, cell.rows)


def _axes(settings: Sequence[Cell]) -> list[str]:
    """Axes on which the settings differ; alpha as a multiple of the rank where that takes fewer values."""
    names = dict.fromkeys(axis for cell in settings for axis in cell.at)
    count = {axis: len({cell.at.get(axis) for cell in settings} - {None}) for axis in names}
    varies = [axis for axis in names if count[axis] > 1 or (axis == "method" and len(settings) == 1)]
    if "alpha" in varies and "alpha / rank" in count and "rank" in varies and count["alpha / rank"] < count["alpha"]:
        varies.remove("alpha")
    elif "alpha / rank" in varies:
        varies.remove("alpha / rank")
    return varies


def _pair(axes: Sequence[str]) -> tuple[str, str] | None:
    """(to the right, downwards)."""
    right = next((axis for axis in _PREFERRED if axis in axes), None)
    if "rank" in axes:
        right = (
            right
            or next((axis for axis in axes if axis not in ("rank", "method")), None)
            or ("method" if "method" in axes else None)
        )
        return (right, "rank") if right else None
    rest = [axis for axis in axes if axis != right]
    if right is None or not rest:
        return (rest[0], rest[1]) if len(rest) > 1 else None
    down = next((axis for axis in _PREFERRED if axis in rest), rest[0])
    return right, down


def _spans(found: Sequence[Cell], pair: tuple[str, str]) -> bool:
    return any(cell.finished for cell in found) and all(len(_values(found, axis)) > 1 for axis in pair)


def _values(found: Sequence[Cell], axis: str) -> list[Value]:
    values = {cell.at.get(axis) for cell in found} - {None}
    figures = all(isinstance(value, int | float) for value in values)
    return sorted(values, key=lambda v: float(v) if figures else str(v))  # type: ignore[arg-type]


def _is_share(found: Sequence[Cell]) -> bool:
    known = [row for cell in found for row in cell.finished]
    return bool(known) and not known[0].lower_is_better and all(-1 <= (row.test or 0) <= 1 for row in known)


def _text(cell: Cell | None, share: bool) -> str:
    if cell is None:
        return ""
    mean = cell.mean("test")
    if mean is not None:
        return numbers.score(mean, share)
    return next(iter(row.status for row in cell.rows), "")


def _hover(cell: Cell | None, share: bool, unit: str) -> str:
    if cell is None:
        return "not run"
    lines = [f"{axis.replace('_', ' ')} {shown(value)}" for axis, value in cell.at.items() if value is not None][-6:]
    for name in ("validation", "test"):
        if (mean := cell.mean(name)) is not None:
            deviation = cell.deviation(name)
            lines.append(
                f"{name} {_score(mean, share)}{unit}"
                + (f" ± {_score(deviation, share)}" if deviation is not None else "")
            )
    return "\n".join([*lines, cell.standing])


def _score(value: float | None, share: bool) -> str:
    return numbers.MISSING if value is None else numbers.score(value, share)


def _name(metric: str) -> str:
    return metric.replace("_", " ")
