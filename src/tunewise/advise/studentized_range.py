"""The law of the studentized range: the largest of k means less the smallest, over the standard error of one of them
from f degrees of dof. What tests of all pairs of k methods at once are judged by (Tukey 1953)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NODES = 120
_LARGEST = 1e6


def studentized_range_sf(q: float, count: int, dof: float) -> float:
    """P(Q > q) for `count` means and `dof` degrees of dof (any number > 0).

    1 - int_0^1 R(q s(p)) dp with s(p) the p-quantile of chi_f / sqrt f and R the law of the range of normal means,
    R(w) = k int phi(z) (Phi(z) - Phi(z - w))^(k-1) dz; Gauss and Legendre's nodes in both,
    to about 1e-5, and to 1e-7 where the tail is below a tenth.
    Raises `ValueError` for fewer than two means or no dof.
    """
    if count < 2 or not dof > 0:
        raise ValueError(f"{count} means and {dof} degrees of dof: at least 2, and more than 0, are needed")
    if q <= 0:
        return 1.0
    import numpy as np
    from scipy.special import gammaincinv, ndtr

    at, weight = _nodes()
    z = 8.5 * (2 * at - 1)
    density = 8.5 * 2 * weight * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    # Nodes crowd where s is small, for there a large q still leaves the range inside: p = u^4.
    s = np.sqrt(2 * gammaincinv(dof / 2, at**4) / dof)
    inside = ndtr(z)[None, :] - ndtr(z[None, :] - q * s[:, None])
    within = count * (density * inside ** (count - 1)).sum(1)
    return float(np.clip((weight * 4 * at**3 * (1 - within)).sum(), 0.0, 1.0))


@lru_cache(maxsize=1000)
def studentized_range_ppf(confidence: float, count: int, dof: float) -> float:
    """The q with P(Q > q) = 1 - confidence. Raises what `studentized_range_sf` raises."""
    low, high = 0.0, 4.0
    while studentized_range_sf(high, count, dof) > 1 - confidence and high < _LARGEST:
        low, high = high, 2 * high
    from scipy.optimize import brentq

    return float(brentq(lambda q: studentized_range_sf(q, count, dof) - (1 - confidence), low, high, rtol=1e-8))


@lru_cache(maxsize=1)
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """On [0, 1]."""
    import numpy as np

    at, weight = np.polynomial.legendre.leggauss(_NODES)
    return (at + 1) / 2, weight / 2
