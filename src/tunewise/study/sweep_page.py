"""`sweep.html`: the results of a sweep as heat maps over two axes and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunewise import number_format as numbers
from tunewise.pages.figures import heat_map
from tunewise.pages.page import write_sections
from tunewise.pages.section import Panel, Section, Table
from tunewise.study.axes import Value, shown
from tunewise.study.sweep_table import Setting, SweepRow, best, group_seeds

_RATIO = "alpha / rank"
_TO_THE_RIGHT = ("learning_rate", _RATIO, "alpha", "restart_every", "links", "epochs", "batch_size", "train_size")
"""The first of these axes that varies goes to the right; the rank goes downwards."""


def write_sweep_page(folder: Path, rows: Sequence[SweepRow], title: str) -> Path:
    """The page beside the sweep's tables."""
    settings = [_with_ratio(setting) for setting in group_seeds(rows)]
    axes = differing_axes(settings)
    done = sum(row.status == "done" for row in rows)
    sections = [section for section in (heat_maps(settings, axes), _table(settings, axes)) if section is not None]
    path = folder / "sweep.html"
    write_sections(path, title=title, subject=f"{done} of {len(rows)} runs finished", sections=sections)
    return path


def differing_axes(settings: Sequence[Setting]) -> list[str]:
    """Axes on which the settings differ; alpha as a multiple of the rank where that takes fewer values."""
    names = dict.fromkeys(axis for setting in settings for axis in setting.at)
    count = {axis: len({setting.at.get(axis) for setting in settings} - {None}) for axis in names}
    by_ratio = count.get("rank", 0) > 1 and count.get(_RATIO, 0) < count.get("alpha", 0)
    left_out = "alpha" if by_ratio else _RATIO
    varies = [axis for axis in names if count[axis] > 1 and axis != left_out]
    return varies or ["method"]


def heat_maps(settings: Sequence[Setting], axes: Sequence[str]) -> Section | None:
    """Test metric over two axes, a panel for each setting of the others; None where fewer than two vary."""
    pair = _pair(axes)
    finished = [row for setting in settings for row in setting.finished]
    if pair is None or not finished:
        return None
    others = [axis for axis in axes if axis not in pair]
    facets: dict[tuple[Value, ...], list[Setting]] = {}
    for setting in settings:
        facets.setdefault(tuple(setting.at.get(axis) for axis in others), []).append(setting)
    panels = [
        _panel(place, ", ".join(f"{_plain(axis)} {shown(value)}" for axis, value in zip(others, values)), facet, pair)
        for place, (values, facet) in enumerate(facets.items())
        if any(setting.finished for setting in facet) and all(len(_values(facet, axis)) > 1 for axis in pair)
    ]
    if not panels:
        return None
    direction = "less" if finished[0].lower_is_better else "more"
    words = (
        f"Test {_plain(finished[0].metric or '')}, mean over seeds; {direction} is better, and darker. The frame "
        "is the setting with the best validation mean in its map: the test split had no say in it."
    )
    return Section(key="maps", title=f"{_plain(pair[0])} × {_plain(pair[1])}", paragraphs=[words], panels=panels)


def color_range(values: Sequence[float], lower_is_better: bool) -> tuple[float, float]:
    """Where the colours begin and end, negated where less is better: up to the best, and down to the worst, but no
    further than four times as far as the median, so that a few failures don't make the rest look alike."""
    signed = sorted((-v if lower_is_better else v) for v in values)
    if not signed:
        return 0.0, 1.0
    top, median = signed[-1], signed[len(signed) // 2]
    return max(signed[0], top - 4 * (top - median)) if top > median else signed[0], top


def _panel(place: int, title: str, facet: list[Setting], pair: tuple[str, str]) -> Panel:
    right, down = pair
    columns, rows = _values(facet, right), _values(facet, down)
    at = {(setting.at.get(down), setting.at.get(right)): setting for setting in facet}
    grid = [[at.get((row, column)) for column in columns] for row in rows]
    lower = next(row.lower_is_better for setting in facet for row in setting.finished)
    share = _is_share(facet)
    means = [[None if setting is None else setting.mean("test") for setting in line] for line in grid]
    low, high = color_range([mean for line in means for mean in line if mean is not None], lower)
    chosen = best(facet)
    framed = [(i, j) for i, line in enumerate(grid) for j, setting in enumerate(line) if setting and setting is chosen]
    caption = ""
    if chosen is not None:
        where = f"{_plain(down)} {shown(chosen.at[down])}, {_plain(right)} {shown(chosen.at[right])}"
        caption = f"Best on validation: {where}: {_score(chosen.mean('test'), share)}{' %' if share else ''}."
    figure = heat_map(
        [shown(row) for row in rows],
        [shown(column) for column in columns],
        [[None if mean is None else (-mean if lower else mean) for mean in line] for line in means],
        [[_text(setting, share) for setting in line] for line in grid],
        [[_hover(setting, share) for setting in line] for line in grid],
        row_title=_plain(down),
        column_title=_plain(right),
        low=low,
        high=high,
        framed=framed[0] if framed else None,
    )
    return Panel(f"map-figure-{place}", title or "test", caption, f"Test over {down} and {right}. {caption}", figure)


def _table(settings: Sequence[Setting], axes: Sequence[str]) -> Section:
    names = ["alpha" if axis == _RATIO else axis for axis in axes]
    share = _is_share(settings)
    metric = next((_plain(row.metric or "") for setting in settings for row in setting.finished), "metric")
    unit = ", %" if share else ""
    scores = [f"validation {metric}{unit}", f"test {metric}{unit}", "± sd", "gap, nats", "trained", "seconds", "runs"]
    chosen = best(settings)
    lines = []
    for setting in settings:
        seconds, gap = setting.mean("seconds"), setting.mean("gap")
        lines.append(
            [
                *(shown(setting.at.get(axis)) for axis in names),
                _score(setting.mean("validation"), share) + (" (best)" if setting is chosen else ""),
                _score(setting.mean("test"), share),
                _score(setting.deviation("test"), share),
                numbers.MISSING if gap is None else numbers.nats(gap),
                numbers.short_count(next((row.trainable for row in setting.finished), None)),
                numbers.MISSING if seconds is None else f"{seconds:.1f}",
                setting.standing,
            ]
        )
    errors = sorted({row.error for setting in settings for row in setting.rows if row.error})
    notes = ["Means over seeds; ± sd: their standard deviation. Every run: table.csv, table.json.", *errors[:8]]
    table = Table([*(_plain(name) for name in names), *scores], lines)
    return Section(key="settings", title="Settings", tables=[table], notes=notes)


def _with_ratio(setting: Setting) -> Setting:
    alpha, rank = setting.at.get("alpha"), setting.at.get("rank")
    if not isinstance(alpha, int | float) or not isinstance(rank, int):
        return setting
    return Setting({**setting.at, _RATIO: float(alpha) / rank}, setting.rows)


def _pair(axes: Sequence[str]) -> tuple[str, str] | None:
    """(to the right, downwards)."""
    if len(axes) < 2:
        return None
    others = [axis for axis in (*_TO_THE_RIGHT, *axes) if axis in axes and axis != "rank"]
    right = next((axis for axis in others if axis != "method"), others[0])
    down = "rank" if "rank" in axes else next(axis for axis in others if axis != right)
    return right, down


def _values(settings: Sequence[Setting], axis: str) -> list[Value]:
    values = {setting.at.get(axis) for setting in settings} - {None}
    are_numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values, key=lambda v: float(v) if are_numbers else str(v))  # type: ignore[arg-type]


def _is_share(settings: Sequence[Setting]) -> bool:
    finished = [row for setting in settings for row in setting.finished]
    return bool(finished) and not finished[0].lower_is_better and all(-1 <= (row.test or 0) <= 1 for row in finished)


def _text(setting: Setting | None, share: bool) -> str:
    if setting is None:
        return ""
    return setting.rows[0].status if setting.mean("test") is None else _score(setting.mean("test"), share)


def _hover(setting: Setting | None, share: bool) -> str:
    if setting is None:
        return "not run"
    lines = [f"{_plain(axis)} {shown(value)}" for axis, value in setting.at.items() if value is not None][-6:]
    for name in ("validation", "test"):
        if (mean := setting.mean(name)) is not None:
            lines.append(f"{name} {_score(mean, share)} ± {_score(setting.deviation(name), share)}")
    return "\n".join([*lines, setting.standing])


def _score(value: float | None, share: bool) -> str:
    return numbers.MISSING if value is None else numbers.score(value, share)


def _plain(name: str) -> str:
    return name.replace("_", " ")
