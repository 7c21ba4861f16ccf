"""Does one number rank the methods as another does? Spearman's rho with an interval and an exact test.

The unit is the method: seeds of one method are repeats, not further evidence, so each method enters by its means.
numpy and scipy are imported where they are used, so that importing this module stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 4
"""Methods; of three even a perfect order comes by chance one time in three."""
_ALL_ORDERS_UP_TO = 8
_DRAWN_ORDERS = 20_000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho over `n` methods, its 95 % interval, and the two-sided p of "no relation"."""

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> RankCorrelation | None:
    """rho of `x` and `y`, one value of each a method; None for fewer than four, or where one of them is constant.

    The interval is Fisher's with Bonett and Wright's standard error sqrt((1 + rho^2 / 2) / (n - 3)) (Psychometrika
    65, 2000); a perfect order counts as half a step less than perfect, or it would have no width. p is the share of
    all orders of the methods (20,000 random ones from nine methods on) with a rho at least as large in size.

    Raises `ValueError` for sequences of two lengths, or a value that is NaN or infinite.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if not all(math.isfinite(v) for v in (*x, *y)):
        raise ValueError("a value is NaN or infinite")
    n = len(x)
    if n < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    import numpy as np
    from scipy.stats import norm, rankdata

    a, b = rankdata(x) - (n + 1) / 2, rankdata(y) - (n + 1) / 2
    scale = math.sqrt(float(a @ a) * float(b @ b))
    rho = max(-1.0, min(1.0, float(a @ b) / scale))
    others = np.abs(b[_orders(n)] @ a) / scale
    p = float((others >= abs(rho) - 1e-9).mean())
    inner = math.copysign(min(abs(rho), 1 - 3 / (n * (n * n - 1))), rho)
    spread = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + sign * spread) for sign in (-1, 1))
    return RankCorrelation(rho, min(low, rho), max(high, rho), p, n)


@cache
def _orders(n: int) -> NDArray[np.int64]:
    """Orders of n things, one a row: all of them, or the one there is and random ones."""
    import itertools

    import numpy as np

    if n <= _ALL_ORDERS_UP_TO:
        return np.array(list(itertools.permutations(range(n))))
    draw = np.random.default_rng(0)
    return np.array([np.arange(n), *(draw.permutation(n) for _ in range(_DRAWN_ORDERS))])
