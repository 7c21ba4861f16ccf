"""Parts of a page: sections, figures with their words, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Panel:
    """A figure. `key` names it in the page; `filtered`: the page's method buttons hide and show its traces."""

    key: str
    title: str
    caption: str
    alt_text: str
    figure: go.Figure
    filtered: bool = False
    collapsed: bool = False

    @property
    def json(self) -> str:
        return str(self.figure.to_json(engine="json"))


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column holds the rows' names; the others hold numbers, aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """Texts with their names, collapsed under a title."""

    title: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """Paragraphs, panels (two in a row, or one where `wide`), tables, examples, collapsed panels, notes. `key`: the
    anchor."""

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    collapsed: Sequence[Panel] = ()
    collapsed_title: str = "More figures"
    notes: Sequence[str] = ()
    wide: bool = False
    examples: Sequence[Example] = ()
