"""The plots of an experiment as plotly figures, in the style and colours of the report."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from tunewise.pages import palette
from tunewise.pages.drawing import add_band, add_vertical_line, blank_figure, plain
from tunewise.papers.lab.contract import Plot, PlotCurve

_MAX_MARKERS = 24  # curves with more points are drawn without markers, and intervals as a band
_MAX_TICKS = 8  # so many values of x are the ticks of a logarithmic axis


def figure(plot: Plot) -> go.Figure:
    """Measured curves with error bars, or a band for many points; the theorem's curves dashed."""
    drawn = blank_figure(height=380)
    marks = palette.marks([curve.name for curve in plot.curves])
    for curve in plot.curves:
        _draw_curve(drawn, curve, "y" in plot.log, marks[curve.name])
    _set_axes(drawn, plot)
    for name, value in plot.thresholds:
        add_vertical_line(drawn, value, name)
    drawn.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 12, "color": palette.INK}},
        margin={"b": 70},
    )
    return drawn


def _draw_curve(drawn: go.Figure, curve: PlotCurve, log: bool, mark: palette.Mark) -> None:
    few = len(curve.x) <= _MAX_MARKERS
    if curve.low and not few:
        low, high = ([_shown(v, log) for v in ends] for ends in (curve.low, curve.high))
        add_band(drawn, list(curve.x), low, high, mark.light, curve.name)
    drawn.add_scatter(
        x=list(curve.x),
        y=[_shown(v, log) for v in curve.y],
        error_y=_error_bars(curve) if curve.low and few else None,
        mode="lines" if curve.dashed or not few else "lines+markers",
        name=plain(curve.name),
        legendgroup=curve.name,
        line={
            "color": palette.MUTED if curve.dashed else mark.light,
            "width": 1.5 if curve.dashed else 2,
            "dash": "dash" if curve.dashed else "solid",
        },
        marker={"symbol": mark.symbol, "size": 8, "color": mark.light},
        hovertemplate="%{x:.4~g}: %{y:.4~g}",
    )


def _set_axes(drawn: go.Figure, plot: Plot) -> None:
    for axis, update, title, values in (
        ("x", drawn.update_xaxes, plot.x, [v for c in plot.curves for v in c.x]),
        ("y", drawn.update_yaxes, plot.y, [v for c in plot.curves for v in (*c.y, *c.low, *c.high)]),
    ):
        log = axis in plot.log
        update(title_text=title + (" (log scale)" if log else ""), type="log" if log else "linear")
        positive = [v for v in values if v > 0 and math.isfinite(v)]
        if log and axis == "x" and len(set(values)) <= _MAX_TICKS:
            update(tickvals=sorted(set(values)), tickformat="~g")
        elif log and positive:
            spread = max(positive) / min(positive)
            update(dtick=1 if 30 < spread < 1e8 else None, exponentformat="power")
        else:
            update(tickformat=".4~g")


def _error_bars(curve: PlotCurve) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - y, 0.0) for y, high in zip(curve.y, curve.high)],
        "arrayminus": [max(y - low, 0.0) for y, low in zip(curve.y, curve.low)],
        "thickness": 1.5,
        "width": 4,
    }


def _shown(value: float, log: bool) -> float | None:
    """None for a value that the axis can't show."""
    return value if math.isfinite(value) and (value > 0 or not log) else None


def describe(plot: Plot) -> str:
    """The plot in words, for a reader who can't see it: the ends of every curve."""
    ends = (f"{c.name} from {c.y[0]:.4g} at {c.x[0]:.4g} to {c.y[-1]:.4g} at {c.x[-1]:.4g}" for c in plot.curves if c.y)
    return f"{plot.title}: {plot.y} against {plot.x}; {'; '.join(ends)}."
