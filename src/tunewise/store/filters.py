"""Which rows of the table of runs are wanted, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from tunewise.errors import SpecError, suggest_nearest
from tunewise.store.table import LIVE, RunRow, as_dict

COLUMNS = tuple(name for name in RunRow.__slots__ if name != "spec")


def selected(
    rows: Iterable[RunRow],
    *,
    method: str | None = None,
    status: str | None = None,
    model: str | None = None,
    where: Sequence[str] = (),
) -> list[RunRow]:
    """Rows that fit all that is given, in their order.

    Args:
        method, status: names, with commas; one of them has to fit.
        model: a part of the model's path, in capitals or not.
        where: `KEY=VALUE`, the key a column or one of the specification: `seed=0`, `training.epochs=3`, or `epochs=3`
            where that names one key alone. Numbers are compared as numbers; `none` is what is not given.

    Raises `SpecError` for an unknown status or key.
    """
    kept = list(rows)
    if method:
        wanted = _names(method)
        present = {row.method for row in kept if row.method}
        if kept and not any(name in present for name in wanted):
            raise SpecError(f"no run of method {method!r} here{suggest_nearest(wanted[0], present)}")
        kept = [row for row in kept if row.method in wanted]
    if status:
        wanted = _names(status)
        for name in wanted:
            if name not in (known := _statuses()):
                raise SpecError(f"unknown status {name!r}{suggest_nearest(name, known)}")
        kept = [row for row in kept if row.status in wanted]
    if model:
        kept = [row for row in kept if row.model and model.lower() in row.model.lower()]
    for condition in where:
        kept = _where(kept, condition)
    return kept


def ordered(rows: Iterable[RunRow], by: str) -> list[RunRow]:
    """Sorted by a column, from the largest down with a minus before it; what is not known comes last. Raises
    `SpecError` for an unknown column."""
    name = by.removeprefix("-")
    if name not in COLUMNS:
        raise SpecError(f"can't sort by {name!r}{suggest_nearest(name, COLUMNS)}")
    rows = list(rows)
    known = [row for row in rows if getattr(row, name) is not None]
    known.sort(key=lambda row: getattr(row, name), reverse=by.startswith("-"))
    return known + [row for row in rows if getattr(row, name) is None]


def plain(row: RunRow) -> dict[str, Any]:
    """A row for JSON: all columns, and the specification as an object."""
    return {**as_dict(row), "spec": json.loads(row.spec) if row.spec else None}


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`; lists stay values."""
    if not isinstance(content, dict) or not content:
        return {prefix: content} if prefix else {}
    return {
        key: value
        for name, below in content.items()
        for key, value in flat(below, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _where(rows: list[RunRow], condition: str) -> list[RunRow]:
    key, sign, value = condition.partition("=")
    key, value = key.strip(), value.strip()
    if not sign or not key:
        raise SpecError(f"--where {condition!r}: write KEY=VALUE, as in --where training.epochs=3")
    if key in COLUMNS:
        return [row for row in rows if _fits(getattr(row, key), value)]
    specs = [flat(json.loads(row.spec)) if row.spec else {} for row in rows]
    keys = dict.fromkeys(name for spec in specs for name in spec)
    found = [name for name in keys if name == key] or [name for name in keys if name.endswith(f".{key}")]
    if not found and rows:
        known = [*COLUMNS, *keys, *(name.rpartition(".")[2] for name in keys)]
        raise SpecError(f"--where {condition!r}: runs have no {key!r}{suggest_nearest(key, known)}")
    if len(found) > 1:
        raise SpecError(f"--where {condition!r}: {key!r} may be {' or '.join(found)}; write it out")
    return [row for row, spec in zip(rows, specs, strict=True) if spec and _fits(spec.get(found[0]), value)]


def _fits(value: Any, asked: str) -> bool:
    if value is None or isinstance(value, bool):
        return json.dumps(value) == asked.lower() or (value is None and asked.lower() == "none")
    if isinstance(value, int | float):
        try:
            return float(asked) == float(value)
        except ValueError:
            return False
    if isinstance(value, list):
        return ",".join(map(str, value)) == asked
    return str(value) == asked


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _statuses() -> list[str]:
    from tunewise.store.records import Status

    return sorted({*get_args(Status), *LIVE})
