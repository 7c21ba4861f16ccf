"""Loss landscapes as plotly figures: contours, surfaces, and several methods in one.

Losses are shown on a logarithmic scale, one for all methods; dark is low on the light page, bright on the dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tunewise.measures.landscape.compute import Surface
from tunewise.pages import palette
from tunewise.pages.drawing import blank_figure, plain
from tunewise.pages.palette import Mark

FLOOR = 1e-4
"""Losses below this are drawn as this: a logarithm has no zero."""
_DECADES = range(-4, 5)
_MOST_TICKS = 7
_LEVELS = 14
_DIGITS = 4
_AXES = ("first random direction", "second random direction")


@dataclass(frozen=True)
class Scale:
    """The range of losses that all figures of a section share."""

    low: float
    high: float

    @classmethod
    def of(cls, surfaces: Sequence[Surface]) -> Scale:
        values = [max(v, FLOOR) for s in surfaces for row in s.loss for v in row if v is not None]
        low, high = min(values), max(values)
        return cls(low, high if high > low else 2 * low)

    @property
    def ticks(self) -> list[float]:
        """Round losses within the range, or its ends where there are not two."""
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [float(f"{s}e{d}") for d in _DECADES for s in steps]
            found = [t for t in found if self.low * 0.999 <= t <= self.high * 1.001]
            if len(found) <= _MOST_TICKS:
                break
        return found if len(found) > 1 else [self.low, self.high]


def contour(surface: Surface, scale: Scale) -> go.Figure:
    """Lines of equal loss over the plane, and the centre."""
    figure = blank_figure(height=400)
    low, high = math.log10(scale.low), math.log10(scale.high)
    figure.add_contour(
        x=_rounded(surface.x),
        y=_rounded(surface.y),
        z=_logarithms(surface.loss),
        customdata=_shown(surface.loss),
        hovertemplate="x %{x:.3g}, y %{y:.3g}<br>loss %{customdata}<extra></extra>",
        zmin=low,
        zmax=high,
        autocontour=False,
        contours={"start": low, "end": high, "size": (high - low) / _LEVELS},
        line={"width": 0.6, "color": palette.MUTED},
        colorscale=[[0, palette.SCALE_HIGH], [0.5, palette.SCALE_MIDDLE], [1, palette.SCALE_LOW]],
        colorbar={
            "title": {"text": "loss", "font": {"color": palette.MUTED}},
            "tickvals": [math.log10(t) for t in scale.ticks],
            "ticktext": [f"{t:.3g}" for t in scale.ticks],
            "tickfont": {"color": palette.MUTED},
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    for colour, width, size in ((palette.LIGHT_PAGE, 4, 13), (palette.INK, 2, 11)):
        figure.add_scatter(
            x=[0.0],
            y=[0.0],
            mode="markers",
            marker={"symbol": "cross-thin", "size": size, "line": {"color": colour, "width": width}},
            hovertemplate="the selected weights<extra></extra>" if colour == palette.INK else None,
            hoverinfo=None if colour == palette.INK else "skip",
        )
    _axes(figure, surface)
    return figure


def basins(surfaces: Mapping[str, Surface], levels: Mapping[str, float], marks: Mapping[str, Mark]) -> go.Figure:
    """One line a method where its loss is that of `levels`, over each other: within it the loss is lower."""
    figure = blank_figure(height=400)
    for method, surface in surfaces.items():
        mark = marks[method]
        figure.add_contour(
            x=_rounded(surface.x),
            y=_rounded(surface.y),
            z=_logarithms(surface.loss),
            customdata=_shown(surface.loss),
            hovertemplate="x %{x:.3g}, y %{y:.3g}<br>loss %{customdata}<extra>" + plain(method) + "</extra>",
            autocontour=False,
            contours={"type": "constraint", "operation": "=", "value": math.log10(levels[method])},
            line={"color": mark.light, "width": 2.5, "dash": mark.dash},
            fillcolor="rgba(0,0,0,0)",
            legendgroup=method,
            showscale=False,
        )
    _axes(figure, next(iter(surfaces.values())))
    return figure


def profiles(surfaces: Mapping[str, Surface], marks: Mapping[str, Mark]) -> go.Figure:
    """The loss along the first direction through the centre, a line a method."""
    figure = blank_figure(height=340)
    for method, surface in surfaces.items():
        row = min(range(len(surface.y)), key=lambda i: abs(surface.y[i]))
        figure.add_scatter(
            x=_rounded(surface.x),
            y=[None if v is None else float(f"{max(v, FLOOR):.4g}") for v in surface.loss[row]],
            mode="lines",
            line={"color": marks[method].light, "width": 2, "dash": marks[method].dash},
            name=method,
            legendgroup=method,
            hovertemplate="x %{x:.3g}: loss %{y:.3g}<extra>" + plain(method) + "</extra>",
        )
    figure.update_xaxes(title_text=_AXES[0])
    figure.update_yaxes(title_text="loss, nats", type="log")
    return figure


def reliefs(surfaces: Mapping[str, Surface], scale: Scale, marks: Mapping[str, Mark]) -> go.Figure:
    """All methods' surfaces in one, each in its colour."""
    figure = _scene(scale)
    for method, surface in surfaces.items():
        colour = marks[method].light
        figure.add_surface(
            x=_rounded(surface.x),
            y=_rounded(surface.y),
            z=_clipped(surface.loss),
            colorscale=[[0, colour], [1, colour]],
            opacity=0.6,
            showscale=False,
            legendgroup=method,
            hovertemplate="x %{x:.3g}, y %{y:.3g}<br>loss %{z:.4g}<extra>" + plain(method) + "</extra>",
        )
    return figure


def _scene(scale: Scale) -> go.Figure:
    figure = blank_figure(height=440)
    axis: dict[str, Any] = {
        "color": palette.MUTED,
        "gridcolor": palette.GRID,
        "showbackground": False,
        "zeroline": False,
        "title": {"font": {"size": 12, "color": palette.MUTED}},
    }
    figure.update_layout(
        xaxis=None,
        yaxis=None,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "xaxis": {**axis, "title": {**axis["title"], "text": _AXES[0]}},
            "yaxis": {**axis, "title": {**axis["title"], "text": _AXES[1]}},
            "zaxis": {
                **axis,
                "title": {**axis["title"], "text": "loss"},
                "type": "log",
                "tickvals": scale.ticks,
                "ticktext": [f"{t:.3g}" for t in scale.ticks],
            },
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": 1.35, "y": -1.35, "z": 0.9}},
            "dragmode": "turntable",
        },
    )
    return figure


def _axes(figure: go.Figure, surface: Surface) -> None:
    figure.update_xaxes(title_text=_AXES[0], showgrid=False, range=[surface.x[0], surface.x[-1]])
    figure.update_yaxes(title_text=_AXES[1], showgrid=False, range=[surface.y[0], surface.y[-1]])


def _logarithms(loss: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [[None if v is None else round(math.log10(max(v, FLOOR)), _DIGITS) for v in row] for row in loss]


def _clipped(loss: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [[None if v is None else float(f"{max(v, FLOOR):.{_DIGITS}g}") for v in row] for row in loss]


def _shown(loss: Sequence[Sequence[float | None]]) -> list[list[str]]:
    return [["not finite" if v is None else f"{v:.{_DIGITS}g}" for v in row] for row in loss]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{v:.5g}") for v in values]
