"""Plain tables of runs for a terminal or a pipe: thousands of lines at once, so no layout engine."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tunewise.cli.tables import aligned, fit_columns, format_value, wrapped
from tunewise.store.filters import COLUMNS
from tunewise.store.table import RunRow
from tunewise.text_format import pluralize

_HEAD = (
    "id",
    "status",
    "method",
    "rank",
    "alpha",
    "rate",
    "seed",
    "model",
    "data",
    "metric",
    "test",
    "gap",
    "seconds",
    "started",
)
_RIGHT = ("rank", "alpha", "rate", "seed", "test", "gap", "seconds")
_OPTIONAL = ("started", "seconds", "data", "model", "metric", "alpha", "seed", "rate")
"""Columns that a narrow terminal does without, the first of them first."""
_PATH = 24
"""Characters of a path that are shown: its end, which tells one from another."""


def lines_of(rows: Sequence[RunRow], ids: Collection[str], width: int = 0) -> list[str]:
    """The table, with ids cut to as much as tells them apart from all of `ids`; why a run has no result stands at the
    end of its line. With a `width`, columns that do not fit are left out, which a last line says: with their value
    where all rows have one, and else where to find them; and why a run has no result stands below it."""
    if not rows:
        return []
    length = _enough(ids)
    lines = [list(_HEAD)]
    for row in rows:
        lines.append(
            [
                row.id[:length],
                row.status,
                row.method or "",
                format_value(row.rank, ""),
                _number(row.alpha, "{:g}"),
                _number(row.rate, "{:.3g}"),
                format_value(row.seed, ""),
                _end(row.model),
                _end(row.data),
                row.metric or "",
                _number(row.test, "{:.4f}"),
                _number(row.gap, "{:+.4f}"),
                _number(row.seconds, "{:.1f}"),
                (row.started or "")[:16].replace("T", " "),
            ]
        )
    lines, left_out = fit_columns(lines, _OPTIONAL, width)
    shown = aligned(lines, right=[i for i, name in enumerate(lines[0]) if name in _RIGHT])
    if not width:
        return [shown[0], *(f"{line}  {_short(r.problem)}" if r.problem else line for line, r in zip(shown[1:], rows))]
    found = [shown[0]]
    for line, row in zip(shown[1:], rows, strict=True):
        found.append(line)
        found += wrapped(row.problem or "", width, "    ")
    return found + wrapped(left_out, width)


def summary_of(rows: Iterable[RunRow], of: int, place: Path) -> str:
    """'18 runs: 17 done, 1 running'."""
    counts = Counter(row.status for row in rows)
    total = sum(counts.values())
    if not total:
        return f"no runs in {place}" if not of else f"none of the {pluralize(of, 'run')} in {place} fits"
    shown = f"{total:,} of {pluralize(of, 'run')}" if total < of else pluralize(total, "run")
    return f"{shown}: {', '.join(f'{count:,} {status}' for status, count in counts.most_common())}"


def csv_of(rows: Iterable[RunRow]) -> str:
    """All columns, a line a run; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, name) for name in COLUMNS] for row in rows)
    return text.getvalue()


def _number(what: float | None, form: str) -> str:
    return "" if what is None else form.format(what)


def _end(path: str | None) -> str:
    if path is None or len(path) <= _PATH:
        return path or ""
    return "…" + path[1 - _PATH :]


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _enough(ids: Collection[str]) -> int:
    """As many characters as it takes for all ids to differ, 8 at least."""
    for length in range(8, 16):
        if len({one[:length] for one in ids}) == len(ids):
            return length
    return 16
