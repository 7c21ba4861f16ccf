"""Figures that compare methods: bars with intervals, lines, learning curves, points of runs, heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tunewise.pages import palette
from tunewise.pages.drawing import band, blank_figure, plain, upright
from tunewise.pages.palette import Mark


@dataclass(frozen=True)
class Curve:
    """One method over epochs: mean, lowest and highest over seeds at each `x`."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


@dataclass(frozen=True)
class GapBar:
    """One method's generalization gaps: mean, interval (None with one seed) and each seed's own."""

    method: str
    mean: float
    low: float | None
    high: float | None
    seeds: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """One method's values at `x`: mean over seeds, and the lowest and highest seed."""

    method: str
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


def lines(
    of: Sequence[Line],
    marks: Mapping[str, Mark],
    *,
    across: str,
    up: str,
    span: tuple[float, float] | None = None,
    log_y: bool = False,
    markers: bool = False,
    upright: tuple[float, float] | None = None,
    upright_name: str = "",
) -> go.Figure:
    """A line a method with a band from the lowest seed to the highest; `upright`: a value, or a range of them, on the
    x axis that is drawn as a dotted line or a grey strip behind."""
    figure = blank_figure(height=350 + legend_height(len(of)))
    for line in of:
        mark = marks[line.method]
        if any(a != b for a, b in zip(line.low, line.high)):
            band(figure, line.x, line.low, line.high, mark.light, line.method)
        figure.add_scatter(
            x=list(line.x),
            y=list(line.mean),
            mode="lines+markers" if markers else "lines",
            name=plain(line.method),
            legendgroup=line.method,
            line={"color": mark.light, "width": 2, "dash": mark.dash},
            marker={"symbol": mark.symbol, "size": 6},
            hovertemplate="%{y:.3~g}",
        )
    if upright is not None:
        _draw_upright(figure, upright, upright_name)
    figure.update_xaxes(title_text=across, tickformat="~g", range=list(span) if span else None)
    figure.update_yaxes(title_text=up, rangemode="normal" if log_y else "tozero", type="log" if log_y else "linear")
    if log_y:
        figure.update_yaxes(exponentformat="power", dtick=1)
    figure.update_layout(hovermode="x unified")
    show_legend(figure)
    return figure


def dots(of: Sequence[Dots], marks: Mapping[str, Mark], *, across: str, up: str) -> go.Figure:
    """Every run a small open mark, each method's mean a large one."""
    figure = blank_figure(height=300 + legend_height(len(of)))
    for method in of:
        mark = marks[method.method]
        name = plain(method.method)
        figure.add_scatter(
            x=list(method.x),
            y=list(method.y),
            mode="markers",
            text=[f"seed {seed}" for seed in method.seeds],
            legendgroup=method.method,
            showlegend=False,
            marker={"symbol": f"{mark.symbol}-open", "size": 6, "color": mark.light},
            hovertemplate=f"{name}, %{{text}}: %{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
        )
        figure.add_scatter(
            x=[math.fsum(method.x) / len(method.x)],
            y=[math.fsum(method.y) / len(method.y)],
            mode="markers",
            name=name,
            legendgroup=method.method,
            marker={"symbol": mark.symbol, "size": 11, "color": mark.light},
            hovertemplate=f"{name}, mean: %{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
        )
    values = [v for method in of for v in method.x]
    wide = min(values) > 0 and max(values) > 12 * min(values)
    figure.update_xaxes(title_text=across + (" (log scale)" if wide else ""), type="log" if wide else "linear")
    figure.update_xaxes(tickformat="~g", dtick=1 if wide else None)
    figure.update_yaxes(title_text=up)
    show_legend(figure)
    return figure


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    unit: str,
    shown: Sequence[Sequence[float | None]] | None = None,
) -> go.Figure:
    """A coloured cell for each row and column, its number in it where there is room: the value, or what `shown` has in
    its place."""
    shown = values if shown is None else shown
    figure = blank_figure(height=150 + 26 * len(rows))
    top = max((v for row in values for v in row if v is not None), default=1.0) or 1.0
    figure.add_heatmap(
        z=[list(row) for row in values],
        text=[["" if v is None else f"{v:.3g}" for v in row] for row in shown],
        texttemplate="%{text}" if len(columns) <= 14 else "",
        customdata=[
            [f"{plain(r)}<br>{plain(c)}" + ("" if v is None else f"<br>{v:.4g}") for c, v in zip(columns, line)]
            for r, line in zip(rows, shown)
        ],
        hovertemplate=f"%{{customdata}} {unit}<extra></extra>",
        zmin=0,
        zmax=top,
        xgap=1,
        ygap=1,
        showscale=False,
        colorscale=[[0, palette.SCALE_LOW], [0.5, palette.SCALE_MIDDLE], [1, palette.SCALE_HIGH]],
    )
    every = max(1, len(columns) // 24)
    figure.update_xaxes(
        tickvals=list(range(0, len(columns), every)),
        ticktext=[plain(c) for c in columns[::every]],
        tickangle=-45,
        showgrid=False,
        ticks="",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[plain(r) for r in rows],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
    return figure


def show_legend(figure: go.Figure) -> None:
    """Names of the lines below the axis, in as many rows as they need."""
    figure.update_layout(
        showlegend=True,
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "font": {"size": 12, "color": palette.INK},
            "bgcolor": "rgba(0,0,0,0)",
        },
    )


def legend_height(methods: int) -> int:
    """Pixels for the rows of the legend on a narrow screen."""
    return 22 * math.ceil(methods / 3)


def _draw_upright(figure: go.Figure, at: tuple[float, float], name: str) -> None:
    low, high = at
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
    upright(figure, high, name)


def gap_per_method(
    bars: Sequence[GapBar], marks: Mapping[str, Mark], *, axis: str = "test loss − train loss, nats", unit: str = "nats"
) -> go.Figure:
    """The gap of each method, or another quantity in one `unit`: mean and interval, every seed a small open dot."""
    figure = blank_figure(height=110 + 40 * len(bars))
    for row, bar in enumerate(bars):
        mark = marks[bar.method]
        figure.add_scatter(
            x=[gap for _, gap in bar.seeds],
            y=[row + 0.24] * len(bar.seeds),
            mode="markers",
            text=[f"seed {seed}" for seed, _ in bar.seeds],
            legendgroup=bar.method,
            name=plain(bar.method),
            marker={"symbol": "circle-open", "size": 6, "color": mark.light, "line": {"width": 1.2}},
            hovertemplate=f"%{{text}}: %{{x:.4f}} {unit}<extra></extra>",
        )
        figure.add_scatter(
            x=[bar.mean],
            y=[row],
            error_x=error_bar(bar.mean, bar.low, bar.high),
            mode="markers",
            text=[plain(bar.method)],
            legendgroup=bar.method,
            name=plain(bar.method),
            marker={"symbol": mark.symbol, "size": 12, "color": mark.light},
            hovertemplate=f"%{{text}}: mean %{{x:.4f}} {unit}<extra></extra>",
        )
    figure.update_xaxes(title_text=axis, rangemode="tozero", zeroline=True, zerolinecolor=palette.ZERO)
    figure.update_yaxes(
        tickvals=list(range(len(bars))),
        ticktext=[plain(bar.method) for bar in bars],
        range=[len(bars) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        tickfont={"size": 13, "color": palette.INK},
    )
    return figure


def learning_curves(curves: Mapping[str, Curve], marks: Mapping[str, Mark], *, what: str) -> go.Figure:
    """One line per method, the mean over seeds; the band goes from the lowest seed to the highest."""
    figure = blank_figure(height=340)
    first = min((curve.x[0] for curve in curves.values()), default=0.0)
    last = max((curve.x[-1] for curve in curves.values()), default=1.0)
    for method, curve in curves.items():
        mark = marks[method]
        if curve.seeds > 1:
            band(figure, curve.x, curve.low, curve.high, mark.light, method)
        few = len(curve.x) <= 12
        figure.add_scatter(
            x=curve.x,
            y=curve.mean,
            mode="lines+markers" if few else "lines",
            name=plain(method),
            legendgroup=method,
            line={"color": mark.light, "width": 2, "dash": mark.dash},
            marker={"symbol": mark.symbol, "size": 8},
            hovertemplate="%{y:.4f}",
        )
    room = 0.03 * last if last > first else 0.5
    figure.update_xaxes(title_text="epoch", tickformat="~g", range=[first - room, last + room])
    if 1 <= last <= 12:
        figure.update_xaxes(dtick=1)
    values = [value for curve in curves.values() for value in (*curve.low, *curve.high)]
    flat = bool(values) and min(values) == max(values)
    figure.update_yaxes(title_text=what, tickformat=".3~f", range=[values[0] - 0.1, values[0] + 0.1] if flat else None)
    figure.update_layout(hovermode="x unified")
    return figure


def short_layers(names: Sequence[str]) -> list[str]:
    """Each name without the parts that all of them share: `encoder.layer.3.attention.self.query` among its like is
    `3.query`. One name alone keeps its last part."""
    split = [name.split(".") for name in names]
    if len(split) < 2:
        return [parts[-1] for parts in split]
    if len({len(parts) for parts in split}) == 1:
        kept = [i for i in range(len(split[0])) if len({parts[i] for parts in split}) > 1]
        return [".".join(parts[i] for i in kept) or parts[-1] for parts in split]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


def error_bar(centre: float, low: float | None, high: float | None) -> dict[str, Any]:
    if low is None or high is None:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - centre, 0.0)],
        "arrayminus": [max(centre - low, 0.0)],
        "thickness": 1.5,
        "width": 4,
    }
