"""Parts of a page: sections, figures with their words, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go


@dataclass(frozen=True)
class Panel:
    """A figure with its words. `key` names it in the page; `filtered`: the buttons of methods act on it."""

    key: str
    title: str
    caption: str
    words: str
    figure: go.Figure
    filtered: bool = False
    folded: bool = False

    @property
    def json(self) -> str:
        return str(self.figure.to_json(engine="json"))


@dataclass(frozen=True)
class Grid:
    """A table of texts. The first column is the row's name; the others are numbers, set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """`key`: the anchor. `words`: paragraphs above the figures. `panels` stand two beside each other where there is
    room (`wide`: one below the other); `folded` ones below, opened on demand."""

    key: str
    title: str
    words: Sequence[str] = ()
    panels: Sequence[Panel] = ()
    grids: Sequence[Grid] = ()
    folded: Sequence[Panel] = ()
    folded_title: str = "More figures"
    notes: Sequence[str] = field(default=())
    wide: bool = False
