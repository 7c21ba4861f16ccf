"""An experiment's plots as plotly figures, in the report's style and colours (both of them: light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from tunewise.pages import palette
from tunewise.pages.drawing import band, blank_figure, plain, upright
from tunewise.papers.lab.contract import Curve, Plot

_FEW = 24  # points up to this many get a marker each
_FEW_TICKS = 8  # values of x up to this many are the ticks of a logarithmic axis


def figure(plot: Plot) -> go.Figure:
    """Measured curves with error bars (or a band where points are many); the theorem's dashed and without marks.

    Curves whose names are equal but for "theory" are told apart by colour alone, so names should differ.
    """
    drawn = blank_figure(height=380)
    marks = palette.marks([curve.name for curve in plot.curves])
    for curve in plot.curves:
        mark = marks[curve.name]
        x, y = list(curve.x), [_shown(v, plot.log_y) for v in curve.y]
        few = len(x) <= _FEW
        banded = bool(curve.low) and not few
        if banded:
            low, high = ([_shown(v, plot.log_y) for v in ends] for ends in (curve.low, curve.high))
            band(drawn, x, low, high, mark.light, curve.name)
        drawn.add_scatter(
            x=x,
            y=y,
            error_y=_bars(curve) if curve.low and not banded else None,
            mode="lines" if curve.theory or not few else "lines+markers",
            name=plain(curve.name),
            legendgroup=curve.name,
            line={
                "color": palette.MUTED if curve.theory else mark.light,
                "width": 1.5 if curve.theory else 2,
                "dash": "dash" if curve.theory else "solid",
            },
            marker={"symbol": mark.symbol, "size": 8, "color": mark.light},
            hovertemplate="%{x:.4~g}: %{y:.4~g}",
        )
    _axes(drawn, plot)
    for name, value in plot.uprights:
        upright(drawn, value, name)
    drawn.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 12, "color": palette.INK}},
        margin={"b": 70},
    )
    return drawn


def _axes(drawn: go.Figure, plot: Plot) -> None:
    for axis, update, title, log, values in (
        ("x", drawn.update_xaxes, plot.x, plot.log_x, [v for c in plot.curves for v in c.x]),
        ("y", drawn.update_yaxes, plot.y, plot.log_y, [v for c in plot.curves for v in (*c.y, *c.low, *c.high)]),
    ):
        update(title_text=title + (" (log scale)" if log else ""), type="log" if log else "linear")
        positive = [v for v in values if v > 0 and math.isfinite(v)]
        if log and axis == "x" and len(set(values)) <= _FEW_TICKS:
            update(tickvals=sorted(set(values)), tickformat="~g")
        elif log and positive:
            wide = max(positive) / min(positive) > 30
            update(dtick=1 if max(positive) / min(positive) < 1e8 and wide else None, exponentformat="power")
        else:
            update(tickformat=".4~g")


def _bars(curve: Curve) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - y, 0.0) for y, high in zip(curve.y, curve.high)],
        "arrayminus": [max(y - low, 0.0) for y, low in zip(curve.y, curve.low)],
        "thickness": 1.5,
        "width": 4,
    }


def _shown(value: float, log: bool) -> float | None:
    """A value that the axis can show."""
    return value if math.isfinite(value) and (value > 0 or not log) else None


def in_words(plots: Sequence[Plot]) -> list[str]:
    """What each plot shows, for a reader who can't see it: the ends of every curve."""
    found = []
    for plot in plots:
        curves = "; ".join(
            f"{c.name} from {c.y[0]:.4g} at {c.x[0]:.4g} to {c.y[-1]:.4g} at {c.x[-1]:.4g}" for c in plot.curves if c.y
        )
        found.append(f"{plot.title}: {plot.y} against {plot.x}; {curves}.")
    return found
