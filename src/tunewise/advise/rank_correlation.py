"""Spearman's rank correlation over methods, with an interval and a permutation test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tunewise.advise.statistics import normal_quantile

FEWEST = 4
"""Methods; with three even a perfect order comes by chance one time in three."""
_ALL_ORDERS_UP_TO = 8
_RANDOM_ORDERS = 20_000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho over `n` methods, its 95 % interval, and the two-sided p of "no relation"."""

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> RankCorrelation | None:
    """rho of one value pair a method; None for fewer than four methods or a constant sequence.

    The interval is Fisher's with the standard error of Bonett & Wright (2000, Psychometrika 65); a perfect order
    counts as half a step less than perfect, or its interval would have no width. p is the share of all orders (of
    20,000 random ones from nine methods on) with a rho of at least this size. `ValueError` for unequal lengths or NaN.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if not all(math.isfinite(v) for v in (*x, *y)):
        raise ValueError("a value is NaN or infinite")
    n = len(x)
    if n < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    from scipy.stats import rankdata  # slow to import

    a, b = rankdata(x) - (n + 1) / 2, rankdata(y) - (n + 1) / 2
    scale = math.sqrt(float(a @ a) * float(b @ b))
    rho = max(-1.0, min(1.0, float(a @ b) / scale))
    others = np.abs(b[_orders(n)] @ a) / scale
    p = float((others >= abs(rho) - 1e-9).mean())
    inner = math.copysign(min(abs(rho), 1 - 3 / (n * (n * n - 1))), rho)
    half = normal_quantile(confidence) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + sign * half) for sign in (-1, 1))
    return RankCorrelation(rho, min(low, rho), max(high, rho), p, n)


@cache
def _orders(n: int) -> NDArray[np.int64]:
    """Permutations of n things, one a row: all of them, or the identity and random ones."""
    if n <= _ALL_ORDERS_UP_TO:
        return np.array(list(itertools.permutations(range(n))))
    random = np.random.default_rng(0)
    return np.array([np.arange(n), *(random.permutation(n) for _ in range(_RANDOM_ORDERS))])
