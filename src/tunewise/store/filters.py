"""Selecting and sorting rows of the table of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import get_args

from tunewise.errors import SpecError, suggest_nearest
from tunewise.store.table import LIVE, RunRow

COLUMNS = tuple(name for name in RunRow.__slots__ if name != "spec")


def selected(
    rows: Iterable[RunRow],
    *,
    method: str | None = None,
    status: str | None = None,
    model: str | None = None,
    where: Sequence[str] = (),
) -> list[RunRow]:
    """Rows that fit all conditions, in their order. Raises `SpecError` for an unknown status or key.

    `method` and `status` are names with commas, `model` is a part of the path. `where` has `KEY=VALUE`, the key a
    column or one of the specification: `seed=0`, `training.epochs=3`, or `epochs=3` where only one key ends so.
    """
    kept = list(rows)
    if method:
        names, present = _names(method), {row.method for row in kept if row.method}
        if kept and present.isdisjoint(names):
            raise SpecError(f"no run of method {method!r} here{suggest_nearest(names[0], present)}")
        kept = [row for row in kept if row.method in names]
    if status:
        names = _names(status)
        for name in names:
            if name not in (statuses := _statuses()):
                raise SpecError(f"unknown status {name!r}{suggest_nearest(name, statuses)}")
        kept = [row for row in kept if row.status in names]
    if model:
        kept = [row for row in kept if row.model and model.lower() in row.model.lower()]
    for condition in where:
        kept = _where(kept, condition)
    return kept


def ordered(rows: Iterable[RunRow], by: str) -> list[RunRow]:
    """Sorted by a column, in descending order with a minus before it; unknown values come last. Raises `SpecError`."""
    name = by.removeprefix("-")
    if name not in COLUMNS:
        raise SpecError(f"can't sort by {name!r}{suggest_nearest(name, COLUMNS)}")
    rows = list(rows)
    with_value = [row for row in rows if getattr(row, name) is not None]
    with_value.sort(key=lambda row: getattr(row, name), reverse=by.startswith("-"))
    return with_value + [row for row in rows if getattr(row, name) is None]


def plain(row: RunRow) -> dict[str, object]:
    """A row for JSON: all columns, and the specification as an object."""
    return {**row.as_dict(), "spec": json.loads(row.spec) if row.spec else None}


def flat(content: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings with dotted keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`; lists stay values."""
    if not isinstance(content, dict) or not content:
        return {prefix: content} if prefix else {}
    return {
        key: value
        for name, below in content.items()
        for key, value in flat(below, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _where(rows: list[RunRow], condition: str) -> list[RunRow]:
    key, sign, value = (part.strip() for part in condition.partition("="))
    if not sign or not key:
        raise SpecError(f"--where {condition!r}: write KEY=VALUE, as in --where training.epochs=3")
    if key in COLUMNS:
        return [row for row in rows if _fits(getattr(row, key), value)]
    specs = [flat(json.loads(row.spec)) if row.spec else {} for row in rows]
    keys = dict.fromkeys(name for spec in specs for name in spec)
    matches = [name for name in keys if name == key] or [name for name in keys if name.endswith(f".{key}")]
    if not matches and rows:
        choices = [*COLUMNS, *keys, *(name.rpartition(".")[2] for name in keys)]
        raise SpecError(f"--where {condition!r}: runs have no {key!r}{suggest_nearest(key, choices)}")
    if len(matches) > 1:
        raise SpecError(f"--where {condition!r}: {key!r} may be {' or '.join(matches)}; write it out")
    return [row for row, spec in zip(rows, specs, strict=True) if spec and _fits(spec.get(matches[0]), value)]


def _fits(value: object, text: str) -> bool:
    if value is None or isinstance(value, bool):
        return json.dumps(value) == text.lower() or (value is None and text.lower() == "none")
    if isinstance(value, int | float):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return (",".join(map(str, value)) if isinstance(value, list) else str(value)) == text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _statuses() -> list[str]:
    from tunewise.store.records import Status

    return sorted({*get_args(Status), *LIVE})
