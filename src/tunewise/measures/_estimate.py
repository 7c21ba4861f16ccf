"""Estimates with 95 % intervals over batches: how much a number would change on other examples of the same data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tunewise.measures.base import Values

Array = NDArray[np.float64]


class Estimate(Values):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def mean_over_batches(values: ArrayLike) -> Estimate:
    """Mean of one value for each batch, with its t interval."""
    batches = np.asarray(values, dtype=np.float64)
    return _t_interval(float(batches.mean()), batches)


def jackknife(per_batch: ArrayLike, statistic: Callable[[Array], float]) -> Estimate:
    """A statistic of the mean over batches (axis 0), with a t interval from its pseudo-values (Tukey 1958)."""
    batches = np.asarray(per_batch, dtype=np.float64)
    count = len(batches)
    overall = float(statistic(batches.mean(axis=0)))
    total = batches.sum(axis=0)
    without = np.array([statistic((total - batch) / (count - 1)) for batch in batches])
    return _t_interval(overall, count * overall - (count - 1) * without)


def _t_interval(value: float, samples: Array) -> Estimate:
    half = float(stats.t.ppf(0.975, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples)))
    return Estimate(value=value, low=value - half, high=value + half)
