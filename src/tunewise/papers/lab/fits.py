"""Means and slopes with intervals, over independent repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from tunewise.advise.statistics import Interval, mean_interval
from tunewise.papers.lab.contract import Finding


def measured(
    what: str,
    values: Sequence[float],
    expected: tuple[float, float] | None,
    note: str = "",
    confidence: float = 0.95,
) -> Finding:
    """The mean over independent repetitions with its t interval; NaN (inconclusive) with a single one, or where a
    value is not finite."""
    if not values or not all(math.isfinite(v) for v in values):
        return Finding(what, math.nan, math.nan, math.nan, expected, note)
    found = mean_interval(list(values), confidence)
    low = math.nan if found.low is None else found.low
    high = math.nan if found.high is None else found.high
    return Finding(what, found.mean, low, high, expected, note)


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y against log x: the exponent of a power law.

    >>> round(log_log_slope([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = fmean(u), fmean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / sum((a - mean_u) ** 2 for a in u)


def log_log_slopes(x: Sequence[float], repetitions: Sequence[Sequence[float]]) -> list[float]:
    """The slope of every repetition alone (a row of y each), for `measured`: what is common to all x of a repetition
    does not count as independent noise."""
    return [log_log_slope(x, y) for y in repetitions]


def band(rows: Sequence[Sequence[float]], confidence: float = 0.95) -> tuple[list[float], list[float], list[float]]:
    """Mean, low and high over repetitions (rows), one of each per column: what a `Curve` takes."""
    found: list[Interval] = [mean_interval(list(column), confidence) for column in zip(*rows)]
    mean = [f.mean for f in found]
    return (
        mean,
        [f.mean if f.low is None else f.low for f in found],
        [f.mean if f.high is None else f.high for f in found],
    )
