"""Angles between subspaces, and what chance gives.

Two subspaces of dimensions p and q have min(p, q) principal angles (Björck & Golub 1973): 0 for a direction that both
hold, 90 degrees for one that is at right angles to all of the other. Random subspaces of a large space are nearly at
right angles, so an angle has to be compared with that of random spaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray


def principal_angles(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Degrees, from the smallest up, of the column spaces of (n, p) and (n, q) matrices of full column rank; exact to
    rounding for small angles as well as for large ones (scipy's, after Knyazev & Argentati 2002).

    >>> [round(float(angle), 6) for angle in principal_angles([[1, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 1]])]
    [0.0, 45.0]
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    angles: NDArray[np.float64] = np.degrees(scipy.linalg.subspace_angles(a, b))
    return np.sort(angles)  # scipy's come down, but for rounding where it joins arcsin to arccos


@dataclass(frozen=True)
class RandomAngles:
    """Degrees between a fixed and a random subspace: means over draws, and the interval of 95 % of the means."""

    mean: float
    """Of the mean angle."""
    low: float
    high: float
    largest: float
    """Of the largest angle."""


@lru_cache(maxsize=256)
def random_angles(n: int, p: int, q: int, draws: int = 200) -> RandomAngles:
    """Of random directions in n dimensions; the same numbers in every process.

    By rotation the fixed space is that of the first p axes. A random q-space is spanned by a Gaussian (n, q) matrix X =
    [X1; X2], and the squared cosines are the eigenvalues of X1^T X1 (X1^T X1 + X2^T X2)^-1. X2 enters by its Gram
    matrix alone, which is Wishart, drawn by its Cholesky factor (Bartlett 1933): nothing of size n is drawn.
    """
    generator = np.random.default_rng([n, p, q])
    count = min(p, q)
    means, largest = [], []
    for _ in range(draws):
        inside = generator.standard_normal((p, q))
        outside = _gram_factor(generator, n - p, q)
        basis, _ = np.linalg.qr(np.concatenate([inside, outside]))
        cosines = np.linalg.svd(basis[:p], compute_uv=False)[:count]
        angles = np.degrees(np.arccos(np.clip(cosines, 0.0, 1.0)))
        means.append(float(angles.mean()))
        largest.append(float(angles.max()))
    low, high = np.quantile(means, [0.025, 0.975])
    return RandomAngles(float(np.mean(means)), float(low), float(high), float(np.mean(largest)))


def _gram_factor(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """The triangular QR factor of a Gaussian (rows, columns) matrix."""
    height = min(rows, columns)
    factor = np.triu(generator.standard_normal((height, columns)), 1)
    diagonal = np.sqrt(generator.chisquare(rows - np.arange(height))) if height else np.zeros(0)
    factor[np.arange(height), np.arange(height)] = diagonal
    return factor
