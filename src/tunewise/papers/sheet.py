"""A table for any output format: columns, rows of entries with a text and a value, a legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SheetColumn:
    """`key` is the name in CSV. `shown="csv"`: only there, as for the ends of intervals, which texts show as ±."""

    key: str
    title: str
    shown: Literal["everywhere", "csv"] = "everywhere"
    right: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """A text for people, and the unrounded value."""

    text: str = ""
    value: float | str | None = None

    @property
    def raw(self) -> str:
        """For CSV."""
        if self.value is None:
            return ""
        return self.value if isinstance(self.value, str) else repr(self.value)


def label(text: str) -> Entry:
    """An entry without a number."""
    return Entry(text, text)


def number(value: float | None, form: str = "") -> Entry:
    """An entry with this format of its value; empty for None."""
    return Entry("" if value is None or not form else format(value, form), value)


@dataclass(frozen=True)
class Sheet:
    """Rows have one entry for each column. In a terminal, rows with equal first `headings` entries share a heading."""

    title: str
    columns: list[SheetColumn]
    rows: list[list[Entry]]
    legend: list[str]
    headings: int = 0

    def texts(self) -> tuple[list[SheetColumn], list[list[str]]]:
        """The columns that people read, and their texts."""
        places = [i for i, column in enumerate(self.columns) if column.shown == "everywhere"]
        return [self.columns[i] for i in places], [[row[i].text for i in places] for row in self.rows]
