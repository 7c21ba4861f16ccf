"""The page of a sweep: sections of heat maps and tables, offline like every report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from tunewise.pages import page as pages
from tunewise.pages import palette
from tunewise.pages.drawing import blank_figure, plain
from tunewise.pages.section import Section

_NUMBERS = 14
"""Columns up to which there is room for numbers in the cells."""


def write_page(path: Path, *, title: str, subject: str, sections: Sequence[Section]) -> None:
    """One file, whole or not at all; the same arguments give the same bytes. Raises `StoreError` where it can't be."""
    pages.write_page(
        path, pages.render_page("sections.html.jinja", title=title, subject=subject, sections=sections, took="")
    )


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    *,
    row_title: str,
    column_title: str,
    low: float,
    high: float,
    marked: tuple[int, int] | None = None,
) -> go.Figure:
    """A cell for each row and column, its text in it where there is room. Colours go from `low` (pale) to `high`; a
    cell without a value is empty but for its text. The `marked` cell, (row, column), has a frame."""
    figure = blank_figure(height=130 + 30 * max(2, len(rows)))
    figure.add_heatmap(
        z=[list(line) for line in values],
        text=[[plain(text) for text in line] for line in texts],
        customdata=[[plain(hover).replace("\n", "<br>") for hover in line] for line in hovers],
        texttemplate="%{text}" if len(columns) <= _NUMBERS else "",
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=True,
        zmin=low,
        zmax=high if high > low else low + 1e-9,
        xgap=1,
        ygap=1,
        showscale=False,
        colorscale=[[0, palette.SCALE_LOW], [0.5, palette.SCALE_MIDDLE], [1, palette.SCALE_HIGH]],
    )
    if marked is not None:
        i, j = marked
        figure.add_shape(
            type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5, line={"color": palette.INK, "width": 2.5}
        )
    figure.update_xaxes(
        title_text=plain(column_title),
        tickvals=list(range(len(columns))),
        ticktext=[plain(name) for name in columns],
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
