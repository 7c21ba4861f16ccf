"""Learning curves over seeds, out of the histories of runs (the lines of `history.jsonl`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunewise.pages.figures import Curve

MOST_POINTS = 60

History = Sequence[Mapping[str, Any]]


def training_curves(histories: Mapping[str, Sequence[History]]) -> dict[str, Curve]:
    """Training loss over epochs, per method, from the histories of its seeds; where there are more than
    `MOST_POINTS` steps they are averaged in equal bins."""

    def points(history: History) -> dict[float, float]:
        steps = [line for line in history if line.get("kind") == "step" and _finite(line.get("loss"))]
        width = math.ceil(len(steps) / MOST_POINTS) or 1
        bins = [steps[i : i + width] for i in range(0, len(steps), width)]
        return {round(_mean([s["epoch"] for s in b]), 6): _mean([s["loss"] for s in b]) for b in bins}

    return _curves(histories, points)


def validation_curves(histories: Mapping[str, Sequence[History]], metric: str | None = None) -> dict[str, Curve]:
    """Validation loss (or a metric of the validation split) after each epoch, per method."""

    def points(history: History) -> dict[float, float]:
        found: dict[float, float] = {}
        for line in history:
            if line.get("kind") != "epoch" or not line.get("validation"):
                continue
            scores = line["validation"]
            value = scores.get("loss") if metric is None else scores.get("metrics", {}).get(metric)
            if _finite(value):
                found[float(line["epoch"])] = value
        return found

    return _curves(histories, points)


def _curves(
    histories: Mapping[str, Sequence[History]],
    points: Callable[[History], dict[float, float]],
) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for method, seeds in histories.items():
        runs = [run for run in map(points, seeds) if run]
        shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if not shared:
            continue
        columns = [[run[x] for run in runs] for x in shared]
        found[method] = Curve(
            x=shared,
            mean=[_mean(column) for column in columns],
            low=[min(column) for column in columns],
            high=[max(column) for column in columns],
            seeds=len(runs),
        )
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
