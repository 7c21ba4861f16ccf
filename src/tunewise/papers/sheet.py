"""A table that can be written in any form: columns, rows of entries with their text and their number, a legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """`key` names it in CSV. `shown`: ends of intervals are columns of their own in CSV alone, where texts have ±."""

    key: str
    title: str
    shown: Literal["everywhere", "text", "csv"] = "everywhere"
    right: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """What is read, and what is computed with."""

    text: str = ""
    value: float | str | None = None

    @property
    def raw(self) -> str:
        """For CSV: unrounded."""
        if self.value is None:
            return ""
        return self.value if isinstance(self.value, str) else repr(self.value)


@dataclass(frozen=True)
class Sheet:
    """Rows have one entry a column."""

    title: str
    columns: list[Column]
    rows: list[list[Entry]]
    legend: list[str]

    def cut(self, form: Literal["text", "csv"]) -> tuple[list[Column], list[list[Entry]]]:
        """The columns of one form, and the rows with these alone."""
        places = [i for i, column in enumerate(self.columns) if column.shown in ("everywhere", form)]
        return [self.columns[i] for i in places], [[row[i] for i in places] for row in self.rows]


def name(text: str) -> Entry:
    """An entry that is its own value."""
    return Entry(text, text)
