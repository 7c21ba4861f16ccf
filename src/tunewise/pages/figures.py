"""Figures that compare methods: bars with intervals, lines, learning curves, points of runs, heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from tunewise.pages import palette
from tunewise.pages.drawing import add_band, add_vertical_line, blank_figure, plain
from tunewise.pages.palette import Mark

_MOST_TEXT_COLUMNS = 14
"""Columns of a heat map up to which its cells have room for text."""


@dataclass(frozen=True)
class Bar:
    """One method's mean with its interval (None with one seed), and (seed, value) of each seed."""

    method: str
    mean: float
    low: float | None
    high: float | None
    seeds: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One method's values at `x`: mean over seeds, lowest and highest seed."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Dots:
    """One method's runs in a plot of one quantity against another."""

    method: str
    x: Sequence[float]
    y: Sequence[float]
    seeds: Sequence[int]


def mean_curves(by_method: Mapping[str, Sequence[Mapping[float, float]]]) -> dict[str, Curve]:
    """Method -> curve, from x -> y of each of its runs, at the x that all of them have."""
    found = {}
    for method, runs in by_method.items():
        shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        columns = [[run[x] for run in runs] for x in shared]
        if columns:
            mean = [math.fsum(column) / len(column) for column in columns]
            found[method] = Curve(shared, mean, [min(c) for c in columns], [max(c) for c in columns])
    return found


def bars(
    rows: Sequence[Bar], marks: Mapping[str, Mark], *, axis: str = "test loss − train loss, nats", unit: str = "nats"
) -> go.Figure:
    """A row for each method: mean and interval, and a small open dot for each seed."""
    figure = blank_figure(height=110 + 40 * len(rows))
    for place, bar in enumerate(rows):
        mark, name = marks[bar.method], plain(bar.method)
        figure.add_scatter(
            x=[value for _, value in bar.seeds],
            y=[place + 0.24] * len(bar.seeds),
            mode="markers",
            text=[f"seed {seed}" for seed, _ in bar.seeds],
            legendgroup=bar.method,
            name=name,
            marker={"symbol": "circle-open", "size": 6, "color": mark.light, "line": {"width": 1.2}},
            hovertemplate=f"%{{text}}: %{{x:.4f}} {unit}<extra></extra>",
        )
        figure.add_scatter(
            x=[bar.mean],
            y=[place],
            error_x=error_bar(bar.mean, bar.low, bar.high),
            mode="markers",
            text=[name],
            legendgroup=bar.method,
            name=name,
            marker={"symbol": mark.symbol, "size": 12, "color": mark.light},
            hovertemplate=f"%{{text}}: mean %{{x:.4f}} {unit}<extra></extra>",
        )
    figure.update_xaxes(title_text=axis, rangemode="tozero", zeroline=True, zerolinecolor=palette.ZERO)
    name_rows(figure, [bar.method for bar in rows])
    return figure


def lines(
    curves: Mapping[str, Curve],
    marks: Mapping[str, Mark],
    *,
    x_title: str,
    y_title: str,
    span: tuple[float, float] | None = None,
    log_y: bool = False,
    markers: bool = False,
) -> go.Figure:
    """A line for each method, with a band from the lowest seed to the highest."""
    figure = blank_figure(height=350 + legend_height(len(curves)))
    _add_curves(figure, curves, marks, markers, size=6, hover="%{y:.3~g}")
    figure.update_xaxes(title_text=x_title, tickformat="~g", range=list(span) if span else None)
    figure.update_yaxes(
        title_text=y_title, rangemode="normal" if log_y else "tozero", type="log" if log_y else "linear"
    )
    if log_y:
        figure.update_yaxes(exponentformat="power", dtick=1)
    figure.update_layout(hovermode="x unified")
    show_legend(figure)
    return figure


def learning_curves(curves: Mapping[str, Curve], marks: Mapping[str, Mark], *, y_title: str) -> go.Figure:
    """A line for each method over epochs, with a band from the lowest seed to the highest."""
    figure = blank_figure(height=340)
    first = min((curve.x[0] for curve in curves.values()), default=0.0)
    last = max((curve.x[-1] for curve in curves.values()), default=1.0)
    for method, curve in curves.items():
        _add_curves(figure, {method: curve}, marks, markers=len(curve.x) <= 12, size=8, hover="%{y:.4f}")
    room = 0.03 * last if last > first else 0.5
    figure.update_xaxes(title_text="epoch", tickformat="~g", range=[first - room, last + room])
    if 1 <= last <= 12:
        figure.update_xaxes(dtick=1)
    values = [value for curve in curves.values() for value in (*curve.low, *curve.high)]
    flat = bool(values) and min(values) == max(values)
    span = [values[0] - 0.1, values[0] + 0.1] if flat else None
    figure.update_yaxes(title_text=y_title, tickformat=".3~f", range=span)
    figure.update_layout(hovermode="x unified")
    return figure


def dots(rows: Sequence[Dots], marks: Mapping[str, Mark], *, x_title: str, y_title: str) -> go.Figure:
    """A small open marker for each run, a large one for each method's mean."""
    figure = blank_figure(height=300 + legend_height(len(rows)))
    for row in rows:
        mark, name = marks[row.method], plain(row.method)
        figure.add_scatter(
            x=list(row.x),
            y=list(row.y),
            mode="markers",
            text=[f"seed {seed}" for seed in row.seeds],
            legendgroup=row.method,
            showlegend=False,
            marker={"symbol": f"{mark.symbol}-open", "size": 6, "color": mark.light},
            hovertemplate=f"{name}, %{{text}}: %{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
        )
        figure.add_scatter(
            x=[math.fsum(row.x) / len(row.x)],
            y=[math.fsum(row.y) / len(row.y)],
            mode="markers",
            name=name,
            legendgroup=row.method,
            marker={"symbol": mark.symbol, "size": 11, "color": mark.light},
            hovertemplate=f"{name}, mean: %{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
        )
    values = [v for row in rows for v in row.x]
    wide = min(values) > 0 and max(values) > 12 * min(values)
    figure.update_xaxes(title_text=x_title + (" (log scale)" if wide else ""), type="log" if wide else "linear")
    figure.update_xaxes(tickformat="~g", dtick=1 if wide else None)
    figure.update_yaxes(title_text=y_title)
    show_legend(figure)
    return figure


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    *,
    row_title: str = "",
    column_title: str = "",
    low: float = 0.0,
    high: float,
    framed: tuple[int, int] | None = None,
) -> go.Figure:
    """A cell for each row and column, text where there is room, colours from `low` to `high`, one cell `framed`."""
    figure = blank_figure(height=150 + 28 * len(rows))
    figure.add_heatmap(
        z=[list(line) for line in values],
        text=[[plain(text) for text in line] for line in texts],
        customdata=[[plain(hover).replace("\n", "<br>") for hover in line] for line in hovers],
        texttemplate="%{text}" if len(columns) <= _MOST_TEXT_COLUMNS else "",
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=True,
        zmin=low,
        zmax=high if high > low else low + 1e-9,
        xgap=1,
        ygap=1,
        showscale=False,
        colorscale=[[0, palette.SCALE_LOW], [0.5, palette.SCALE_MIDDLE], [1, palette.SCALE_HIGH]],
    )
    if framed is not None:
        i, j = framed
        frame = {"color": palette.INK, "width": 2.5}
        figure.add_shape(type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5, line=frame)
    every = max(1, len(columns) // 24)
    figure.update_xaxes(
        title_text=plain(column_title),
        tickvals=list(range(0, len(columns), every)),
        ticktext=[plain(name) for name in columns[::every]],
        tickangle=-45 if len(columns) > 6 else 0,
        showgrid=False,
        ticks="",
    )
    figure.update_yaxes(
        title_text=plain(row_title),
        tickvals=list(range(len(rows))),
        ticktext=[plain(name) for name in rows],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
    return figure


def layer_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    unit: str,
) -> go.Figure:
    """A heat map from 0 to the largest value."""
    texts = [["" if v is None else f"{v:.3g}" for v in row] for row in values]
    hovers = [
        [f"{name}\n{column}" + ("" if v is None else f"\n{v:.4g} {unit}") for column, v in zip(columns, line)]
        for name, line in zip(rows, values)
    ]
    top = max((v for row in values for v in row if v is not None), default=1.0) or 1.0
    return heat_map(rows, columns, values, texts, hovers, high=top)


def name_rows(figure: go.Figure, names: Sequence[str], top: float = -0.6) -> None:
    """The y axis of a figure that has a row for each name, the first one at the top."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name) for name in names],
        range=[len(names) - 0.4, top],
        showgrid=False,
        zeroline=False,
        tickfont={"size": 13, "color": palette.INK},
    )


def mark_range(figure: go.Figure, low: float, high: float, name: str) -> None:
    """A grey strip from `low` to `high` on the x axis, with a dotted line and a name at its end."""
    if high > low:
        figure.add_shape(
            type="rect",
            x0=low,
            x1=high,
            y0=0,
            y1=1,
            yref="paper",
            layer="below",
            line={"width": 0},
            fillcolor=palette.GRID,
        )
    add_vertical_line(figure, high, name)


def show_legend(figure: go.Figure) -> None:
    """The names of the lines below the axis, in as many rows as they need."""
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "bgcolor": "rgba(0,0,0,0)"}
    figure.update_layout(showlegend=True, legend={**legend, "font": {"size": 12, "color": palette.INK}})


def legend_height(methods: int) -> int:
    """Pixels for the rows of the legend on a narrow screen."""
    return 22 * math.ceil(methods / 3)


def error_bar(centre: float, low: float | None, high: float | None) -> dict[str, object]:
    """An interval as plotly takes it."""
    if low is None or high is None:
        return {"visible": False}
    above, below = [max(high - centre, 0.0)], [max(centre - low, 0.0)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5, "width": 4}


def _add_curves(
    figure: go.Figure, curves: Mapping[str, Curve], marks: Mapping[str, Mark], markers: bool, size: int, hover: str
) -> None:
    for method, curve in curves.items():
        mark = marks[method]
        if any(a != b for a, b in zip(curve.low, curve.high)):
            add_band(figure, curve.x, curve.low, curve.high, mark.light, method)
        figure.add_scatter(
            x=list(curve.x),
            y=list(curve.mean),
            mode="lines+markers" if markers else "lines",
            name=plain(method),
            legendgroup=method,
            line={"color": mark.light, "width": 2, "dash": mark.dash},
            marker={"symbol": mark.symbol, "size": size},
            hovertemplate=hover,
        )
