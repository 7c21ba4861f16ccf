"""The Pareto set over quality and cost, and the order of cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tunewise.advise.summary import MethodSummary

Point = Sequence[float | None]

# Costs that decide after the step time, with the ratio up to which two of them count as equal.
_EQUAL_UP_TO = {"peak_bytes": 1.05, "saved_bytes": 1.01, "trainable": 1.0}


def pareto_set(points: Mapping[str, Point], tolerance: Sequence[float] | None = None) -> list[str]:
    """Names of the points that no other point dominates, in the order given; on every axis more is better.

    A point dominates another if it is at least as good on every axis and better by more than the axis's `tolerance`
    on one (so that domination stays transitive). None or NaN is unknown: on that axis a known value neither dominates
    an unknown one nor is dominated by it, and two unknown values are equal.
    """
    known = {name: [None if v is None or math.isnan(v) else v for v in point] for name, point in points.items()}
    return [
        name
        for name in points
        if not any(_dominates(known[other], known[name], tolerance) for other in points if other != name)
    ]


def _dominates(a: Point, b: Point, tolerance: Sequence[float] | None) -> bool:
    is_better = False
    for x, y, slack in zip(a, b, tolerance or [0.0] * len(a), strict=True):
        if x is None or y is None:
            if x is not y:
                return False
            continue
        if x < y:
            return False
        is_better = is_better or (x > y and x - y > slack)
    return is_better


def pareto_labels(methods: Sequence[MethodSummary], metric_tolerance: float = 0.0) -> list[str]:
    """Labels of the Pareto set over test metric, gap, step time, memory and trainable parameters.

    Memory is the probe's peak, or the bytes kept for the backward where a method lacks a peak.
    """
    has_peaks = all(m.peak_bytes is not None for m in methods)
    points = {m.label: _pareto_point(m, has_peaks) for m in methods}
    return pareto_set(points, [metric_tolerance, 0, 0, 0, 0])


def _pareto_point(method: MethodSummary, has_peaks: bool) -> Point:
    gap = method.gap.mean if method.gap else None
    ratio = method.cost.ratio_to_floor if method.cost else None
    memory = method.peak_bytes if has_peaks else method.saved_bytes
    costs = (gap, ratio, memory, method.trainable)
    return [method.merit if method.test_metric else None, *(None if cost is None else -cost for cost in costs)]


def select_cheapest(methods: Sequence[MethodSummary]) -> MethodSummary:
    """By step time, peak memory, bytes for the backward, trainable parameters, in this order; then by mean.

    Each step keeps those whose cost does not clearly differ from the lowest; a cost that a method lacks is skipped.
    """
    left = list(methods)
    costs = [m.cost for m in left if m.cost]
    if len(costs) == len(left):
        bound = min(costs, key=lambda c: c.ratio_to_floor).ratio_high
        left = [m for m in left if m.cost and m.cost.ratio_low <= bound]
    for name, ratio in _EQUAL_UP_TO.items():
        values = [value for m in left if (value := getattr(m, name)) is not None]
        if len(values) == len(left):
            left = [m for m, value in zip(left, values) if value <= ratio * min(values)]
    return max(left, key=lambda m: m.merit)


def describe_saving(method: MethodSummary, other: MethodSummary) -> str:
    """What `method` saves against `other`, by the same order; empty where it isn't cheaper."""
    a, b = method.cost, other.cost
    if a and b:
        if a.ratio_high < b.ratio_low or b.ratio_high < a.ratio_low:
            return _less("a training step takes {} less time", a.ratio_to_floor, b.ratio_to_floor)
        if a.peak_bytes and b.peak_bytes and _differ(a.peak_bytes, b.peak_bytes, _EQUAL_UP_TO["peak_bytes"]):
            return _less("it needs {} less memory", a.peak_bytes, b.peak_bytes)
        if _differ(a.saved_bytes, b.saved_bytes, _EQUAL_UP_TO["saved_bytes"]):
            return _less("it keeps {} less for the backward pass", a.saved_bytes, b.saved_bytes)
    if method.trainable is not None and other.trainable is not None and method.trainable < other.trainable:
        return f"it trains {method.trainable:,} parameters instead of {other.trainable:,}"
    return ""


def _differ(a: float, b: float, ratio: float) -> bool:
    return max(a, b) > ratio * min(a, b)


def _less(sentence: str, a: float, b: float) -> str:
    saved = 100 * (1 - a / b)
    return sentence.format(f"{saved:.0f} %" if saved >= 1 else f"{saved:.1f} %") if a < b else ""
