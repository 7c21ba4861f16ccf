"""Curves over epochs out of what a measure found at the snapshots of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunewise.pages.figures import Curve
from tunewise.store.records import RunRecord

Found = Sequence[tuple[RunRecord, Mapping[str, Any]]]
"""Runs with a measure's values, which hold `points` (each with its `step`) and `selected`."""


def curves_of(found: Found, value: Callable[[Mapping[str, Any]], float | None]) -> dict[str, Curve]:
    """Per method, `value` of each point over epochs: mean, lowest and highest over seeds, at the points that all of
    the method's runs have a value at."""
    by_method: dict[str, list[dict[float, float]]] = {}
    for record, values in found:
        points = values["points"]
        if not points:
            continue
        scale = record.spec.training.epochs / max(points[-1]["step"], 1)
        known = {round(p["step"] * scale, 6): y for p in points if (y := value(p)) is not None}
        if known:
            by_method.setdefault(record.spec.method.label, []).append(known)
    drawn = {}
    for method, runs in by_method.items():
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        if not shared:
            continue
        columns = [[run[x] for run in runs] for x in shared]
        drawn[method] = Curve(
            x=shared,
            mean=[math.fsum(c) / len(c) for c in columns],
            low=[min(c) for c in columns],
            high=[max(c) for c in columns],
            seeds=len(runs),
        )
    return drawn


def by_method(found: Found, value: Callable[[Mapping[str, Any]], float | None]) -> dict[str, dict[int, float]]:
    """`value` of each run's values, by method and seed; runs without one are left out."""
    values: dict[str, dict[int, float]] = {}
    for record, made in found:
        known = value(made)
        if known is not None:
            values.setdefault(record.spec.method.label, {})[record.spec.seed] = known
    return values


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what is known; None where nothing is."""
    known = sorted(v for v in values if v is not None)
    half = len(known) // 2
    if not known:
        return None
    return known[half] if len(known) % 2 else (known[half - 1] + known[half]) / 2
