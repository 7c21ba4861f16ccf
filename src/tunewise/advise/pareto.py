"""What is traded off: the methods that nothing else beats on every count, and the order of cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from tunewise.advise.summary import MethodSummary
from tunewise.errors import suggest_nearest

Sense = Literal["max", "min"]

_SENSES: dict[str, Sense] = {
    "metric": "max",
    "gap": "min",
    "time": "min",
    "memory": "min",
    "trainable": "min",
}

# The counts that decide after the step time, each with the factor up to which two of them are the same.
_SLACK = {"peak_bytes": 1.05, "saved_bytes": 1.01, "trainable": 1.0}


def pareto_set(
    points: Mapping[str, Mapping[str, float | None]],
    senses: Mapping[str, Sense],
    tolerance: Mapping[str, float] | None = None,
) -> list[str]:
    """Names of the points that no other point dominates, in the order given.

    A point is dominated by one that is at least as good on every axis of `senses` and better by more than
    that axis's `tolerance` (0 unless given, in the axis's unit) on one. An advantage within the tolerance
    alone pushes nobody out. Domination stays transitive, so the set of a non-empty table is never empty; the
    tempting rule "no worse than the tolerance on the other axes" goes round in circles.

    A value that is absent, None or NaN is unknown: on that axis a point neither dominates one whose value is
    known nor is dominated by it, and two unknowns are equal. Points may hold more than the axes that are
    asked for.

    Raises `ValueError` for an axis of `tolerance` that is not in `senses`, or a tolerance below 0.
    """
    slack = dict.fromkeys(senses, 0.0) | dict(tolerance or {})
    for axis, width in slack.items():
        if axis not in senses:
            raise ValueError(f"a tolerance is given for {axis!r}, which is no axis{suggest_nearest(axis, senses)}")
        if not width >= 0:
            raise ValueError(f"the tolerance of {axis!r} is {width}; it can't be below 0")
    gains = {name: {axis: _gain(point.get(axis), senses[axis]) for axis in senses} for name, point in points.items()}
    return [
        name
        for name in points
        if not any(_dominates(gains[other], gains[name], slack) for other in points if other != name)
    ]


def pareto_labels(methods: Sequence[MethodSummary], metric_tolerance: float = 0.0) -> list[str]:
    """Labels of the Pareto set over test metric, gap, step time, memory and trainable parameters.

    Memory is the probe's peak, or the bytes kept for the backward where a method lacks a peak.
    """
    peaks = all(m.peak_bytes is not None for m in methods)
    points: dict[str, dict[str, float | None]] = {
        m.label: {
            "metric": m.merit if m.test_metric else None,
            "gap": m.gap.mean if m.gap else None,
            "time": m.cost.ratio_to_floor if m.cost else None,
            "memory": m.peak_bytes if peaks else m.saved_bytes,
            "trainable": m.trainable,
        }
        for m in methods
    }
    return pareto_set(points, _SENSES, {"metric": metric_tolerance})


def select_cheapest(methods: Sequence[MethodSummary]) -> MethodSummary:
    """By step time, peak memory, bytes for the backward, trainable parameters, in this order; then by mean.

    Each step keeps those that can't be told apart from the lowest: overlapping intervals of the ratio to the
    frozen floor, 5 % of peak memory, 1 % of saved bytes. A count that one of them lacks is passed over.
    """
    left = list(methods)
    costs = [m.cost for m in left if m.cost]
    if len(costs) == len(left):
        bound = min(costs, key=lambda c: c.ratio_to_floor).ratio_high
        left = [m for m in left if m.cost and m.cost.ratio_low <= bound]
    for count, slack in _SLACK.items():
        known = [value for m in left if (value := getattr(m, count)) is not None]
        if len(known) == len(left):
            bound = slack * min(known)
            left = [m for m, value in zip(left, known) if value <= bound]
    return max(left, key=lambda m: m.merit)


def describe_saving(method: MethodSummary, other: MethodSummary) -> str:
    """What `method` saves against `other`, by the same order, in words; empty where it isn't cheaper."""
    a, b = method.cost, other.cost
    if a and b:
        if a.ratio_high < b.ratio_low or b.ratio_high < a.ratio_low:
            return _less("a training step takes {} less time", a.ratio_to_floor, b.ratio_to_floor)
        if a.peak_bytes and b.peak_bytes and _differ(a.peak_bytes, b.peak_bytes, _SLACK["peak_bytes"]):
            return _less("it needs {} less memory", a.peak_bytes, b.peak_bytes)
        if _differ(a.saved_bytes, b.saved_bytes, _SLACK["saved_bytes"]):
            return _less("it keeps {} less for the backward pass", a.saved_bytes, b.saved_bytes)
    if method.trainable is not None and other.trainable is not None and method.trainable < other.trainable:
        return f"it trains {method.trainable:,} parameters instead of {other.trainable:,}"
    return ""


def _differ(a: float, b: float, slack: float) -> bool:
    return max(a, b) > slack * min(a, b)


def _less(sentence: str, a: float, b: float) -> str:
    saved = 100 * (1 - a / b)
    return sentence.format(f"{saved:.0f} %" if saved >= 1 else f"{saved:.1f} %") if a < b else ""


def _gain(value: float | None, sense: Sense) -> float | None:
    """The value turned so that more is better; None where it is unknown."""
    if value is None or math.isnan(value):
        return None
    return value if sense == "max" else -value


def _dominates(a: dict[str, float | None], b: dict[str, float | None], slack: dict[str, float]) -> bool:
    better = False
    for axis, width in slack.items():
        x, y = a[axis], b[axis]
        if x is None or y is None:
            if x is not y:
                return False
            continue
        if x < y:
            return False
        better = better or (x > y and x - y > width)
    return better
