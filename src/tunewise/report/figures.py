"""The figures of a report, as plotly figures: one function each, from numbers that stand in run records.

Backgrounds are see-through and every colour is one of `palette`'s light ones, which the page exchanges on a
dark background. Text that a user wrote (labels of classes) is escaped: plotly reads a subset of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from tunewise.pages import palette
from tunewise.pages.drawing import add_vertical_line, blank_figure, plain
from tunewise.pages.figures import error_bar
from tunewise.pages.palette import Mark

MOST_CLASSES = 60  # a confusion matrix of more can't be read
_GAP = "\u2009\u200a"  # between a marker and its name
_RING_GAP = "\u2002\u2009"


@dataclass(frozen=True)
class Point:
    """One method in a plot of accuracy against a cost. Ends of an interval are None where there is none."""

    method: str
    cost: float
    cost_low: float | None
    cost_high: float | None
    score: float
    score_low: float | None
    score_high: float | None
    efficient: bool  # in the Pareto set
    chosen: bool = False  # the one recommended


def accuracy_against_cost(
    points: Sequence[Point],
    marks: Mapping[str, Mark],
    *,
    cost: str,
    score: str,
    unit: str = "",
    lines: Sequence[tuple[str, float]] = (),
    share: bool = True,
    higher: bool | None = None,
) -> go.Figure:
    """Score against cost: the upper left corner is best. The ring is recommended, filled marks are the Pareto set."""
    figure = blank_figure(height=400)
    below = off_scale(points, share, higher)
    inside = [p for p in points if p.method not in below]
    bottom, top = _score_range(inside, share, share if higher is None else higher)
    for point in sorted(points, key=lambda p: p.chosen):  # the one recommended on top
        mark = marks[point.method]
        symbol = mark.symbol if point.efficient else f"{mark.symbol}-open"
        name = plain(point.method)
        text = f"<b>{name}</b>" if point.chosen else name
        gap = _RING_GAP if point.chosen else _GAP
        lies_at = point.score
        if point.method in below:
            text, lies_at = f"{text} {_score(point.score, share, 1)} ↓", bottom + 0.04 * (top - bottom)
        if point.chosen:
            figure.add_scatter(
                x=[point.cost],
                y=[lies_at],
                mode="markers",
                marker={"symbol": "circle-open", "size": 26, "color": palette.INK, "line": {"width": 2}},
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=[point.cost],
            y=[lies_at],
            error_x=error_bar(point.cost, point.cost_low, point.cost_high),
            error_y=error_bar(point.score, point.score_low, point.score_high) if lies_at == point.score else None,
            mode="markers+text",
            name=name,
            legendgroup=point.method,
            text=[f"{gap}{text}{gap}"],
            textposition="middle right",
            textfont={"size": 13, "color": palette.INK},
            cliponaxis=False,
            marker={
                "symbol": symbol,
                "size": 12,
                "color": mark.light,
                "line": {"width": 2, "color": mark.light},
            },
            hovertemplate=(
                f"{name}<br>{score} {_score(point.score, share, 2)}<br>{cost} %{{x:.4~g}}{unit}<extra></extra>"
            ),
        )
    costs = [p.cost for p in points] + [value for _, value in lines]
    wide = bool(costs) and min(costs) > 0 and max(costs) / min(costs) > 12
    figure.update_xaxes(
        title_text=cost + (f", {unit.strip()}" if unit else "") + (" (log scale)" if wide else ""),
        type="log" if wide else "linear",
        range=None if len(set(costs)) > 1 else [0, 2 * costs[0] or 1],
    )
    if wide:
        figure.update_xaxes(dtick=1, exponentformat="SI", minor={"ticks": ""})
    figure.update_yaxes(title_text=f"test {score}", tickformat=".2~%" if share else ".4~g", range=[bottom, top])
    for name, value in lines:
        add_vertical_line(figure, value, name)
        if not wide:  # autorange does not look at shapes
            figure.add_scatter(x=[value], y=[top], mode="markers", marker={"opacity": 0}, hoverinfo="skip")
    return figure


def off_scale(points: Sequence[Point], share: bool = True, higher: bool | None = None) -> set[str]:
    """Methods further from the best than four times the median and the widest interval; none of fewer than four.
    `higher`: whether higher scores are better; those of shares are, unless given."""
    scores = sorted((p.score for p in points), reverse=share if higher is None else higher)
    if len(scores) < 4:
        return set()
    to_median = abs(scores[0] - scores[(len(scores) - 1) // 2])
    widest = max(
        (p.score_high - p.score_low for p in points if p.score_low is not None and p.score_high is not None),
        default=0.0,
    )
    reach = max(4 * to_median, widest, 0.01 if share else 0.01 * abs(scores[0]))
    return {p.method for p in points if abs(p.score - scores[0]) > reach}


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> go.Figure:
    """Counts by true (rows) and predicted class (columns); colours are shares of the true class."""
    count = len(matrix)
    names = [str(label) for label in labels] if len(labels) == count else [str(i) for i in range(count)]
    shares = [[value / sum(row) if sum(row) else 0.0 for value in row] for row in matrix]
    shown = [plain(_short(name, 14 if count > 12 else 20)) for name in names]
    step = 1 if count <= 24 else 2
    hover = [
        [
            f"true: {plain(true)}<br>predicted: {plain(predicted)}<br>{n} of {sum(row)}"
            for n, predicted in zip(row, names)
        ]
        for row, true in zip(matrix, names)
    ]
    figure = blank_figure(height=min(760, 110 + max(count * 28, 160)))
    figure.add_heatmap(
        z=shares,
        text=[[str(value) for value in row] for row in matrix],
        customdata=hover,
        texttemplate="%{text}" if count <= 12 else "",
        hovertemplate="%{customdata}<extra></extra>",
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=False,
        colorscale=[[0, palette.SCALE_LOW], [0.2, palette.SCALE_MIDDLE], [1, palette.SCALE_HIGH]],
    )
    ticks = list(range(0, count, step))
    figure.update_xaxes(
        title_text="predicted",
        tickvals=ticks,
        ticktext=shown[::step],
        tickangle=-45 if count > 4 else 0,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_yaxes(
        title_text="true",
        tickvals=ticks,
        ticktext=shown[::step],
        range=[count - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _score(value: float, share: bool, digits: int) -> str:
    return f"{value:.{digits}%}" if share else f"{value:.4g}"


def _score_range(points: Sequence[Point], share: bool, higher: bool) -> tuple[float, float]:
    """Bottom and top of the axis, room left below for what is off the scale."""
    low = min(min(p.score, p.score if p.score_low is None else p.score_low) for p in points)
    high = max(max(p.score, p.score if p.score_high is None else p.score_high) for p in points)
    if share and all(0 <= p.score <= 1 for p in points):  # a wide interval may leave what such a score can be
        low, high = max(low, 0.0), min(high, 1.0)
    room = 0.08 * (high - low) or 0.01
    return (low - 2 * room, high + room) if higher else (high + 2 * room, low - room)


def _short(text: str, most: int) -> str:
    """Cut in the middle: what tells names apart often stands at their end."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"
