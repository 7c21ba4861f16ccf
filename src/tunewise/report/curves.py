"""Learning curves over seeds, from the histories of runs (the lines of `history.jsonl`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunewise.pages.figures import Curve, mean_curves

MOST_POINTS = 60

History = Sequence[Mapping[str, Any]]


def training_curves(histories: Mapping[str, Sequence[History]]) -> dict[str, Curve]:
    """Training loss over epochs, by method; more than `MOST_POINTS` steps are averaged in equal bins."""

    def points(history: History) -> dict[float, float]:
        steps = [line for line in history if line.get("kind") == "step" and _is_finite(line.get("loss"))]
        width = math.ceil(len(steps) / MOST_POINTS) or 1
        bins = [steps[i : i + width] for i in range(0, len(steps), width)]
        return {round(_mean([s["epoch"] for s in b]), 6): _mean([s["loss"] for s in b]) for b in bins}

    return _curves(histories, points)


def validation_curves(histories: Mapping[str, Sequence[History]], metric: str | None = None) -> dict[str, Curve]:
    """Validation loss (or a metric of the validation split) after each epoch, by method."""

    def points(history: History) -> dict[float, float]:
        values: dict[float, float] = {}
        for line in history:
            if line.get("kind") != "epoch" or not line.get("validation"):
                continue
            scores = line["validation"]
            value = scores.get("loss") if metric is None else scores.get("metrics", {}).get(metric)
            if _is_finite(value):
                values[float(line["epoch"])] = value
        return values

    return _curves(histories, points)


def _curves(
    histories: Mapping[str, Sequence[History]], points: Callable[[History], dict[float, float]]
) -> dict[str, Curve]:
    return mean_curves({method: [run for run in map(points, seeds) if run] for method, seeds in histories.items()})


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
