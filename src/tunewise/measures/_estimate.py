"""Intervals over batches: how much a figure would move on other examples of the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]


def mean_over_batches(values: Any) -> dict[str, float]:
    """Mean of one value a batch, with its 95 % t interval: {value, low, high}."""
    found = np.asarray(values, dtype=np.float64)
    return _t_interval(float(found.mean()), found)


def jackknife(per_batch: Any, statistic: Callable[[Values], float]) -> dict[str, float]:
    """A statistic of the mean over batches (axis 0), with a 95 % t interval from its pseudo-values with one batch
    left out at a time (Tukey 1958): {value, low, high}. The plain t interval where the statistic is linear."""
    batches = np.asarray(per_batch, dtype=np.float64)
    count = len(batches)
    whole = float(statistic(batches.mean(axis=0)))
    total = batches.sum(axis=0)
    without = np.array([statistic((total - one) / (count - 1)) for one in batches])
    return _t_interval(whole, count * whole - (count - 1) * without)


def _t_interval(value: float, samples: Values) -> dict[str, float]:
    half = float(stats.t.ppf(0.975, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples)))
    return {"value": value, "low": value - half, "high": value + half}
