"""The base of every figure: an empty one in the style of the pages, named vertical lines, bands."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from tunewise.pages import palette

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def blank_figure(height: int) -> go.Figure:
    """No data yet, axes and fonts in the report's style, `height` in pixels."""
    figure = go.Figure()
    axis = {
        "gridcolor": palette.GRID,
        "zeroline": False,
        "linecolor": palette.ZERO,
        "color": palette.MUTED,
        "automargin": True,
        "title": {"font": {"size": 13, "color": palette.MUTED}, "standoff": 10},
    }
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 16, "r": 16, "t": 12, "b": 16},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 12, "color": palette.INK},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": palette.MUTED, "activecolor": palette.INK},
        hoverlabel={"bgcolor": palette.LIGHT_PAGE, "font": {"color": palette.INK}},
        showlegend=False,
        xaxis=axis,
        yaxis=axis,
    )
    return figure


def plain(text: str) -> str:
    """Text as plotly shows it letter for letter: it reads a subset of HTML."""
    return html.escape(text, quote=False)


def add_vertical_line(figure: go.Figure, value: float, name: str, side: str = "left") -> None:
    """A dotted vertical line with its name at the top, the name's `side` towards the line."""
    figure.add_shape(
        type="line",
        x0=value,
        x1=value,
        y0=0,
        y1=1,
        yref="paper",
        layer="below",
        line={"color": palette.MUTED, "width": 1.5, "dash": "dot"},
        label={
            "text": plain(name),
            "textposition": "end",
            "textangle": 0,
            "xanchor": side,
            "yanchor": "top",
            "font": {"size": 12, "color": palette.MUTED},
        },
    )


def add_band(
    figure: go.Figure,
    x: Sequence[float],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    group: str,
) -> None:
    """A pale band from `low` to `high`; the legend hides and shows it with `group`."""
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        opacity=0.14,
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
    )
