r"""The top left singular vectors of W0 + dW from those of W0, without a second decomposition.

With W0 = U D V^T known and dW = X diag(s) Y^T of rank q, the left vectors of M = W0 + dW are eigenvectors of M M^T.
In the basis Q = [U, E], E spanning what of X lies outside of U (for tall weights),

    Q^T M M^T Q = diag(D^2, 0) + G H^T + H G^T + G diag(s^2) G^T,   G = Q^T X,   H = Q^T W0 Y diag(s)

is diagonal plus rank 2q, so that Lanczos' method costs N q a step. An eigenvector's first entries are its cosines
with U's columns. Two things are checked, and where either fails the plain decomposition is taken: the residuals, and
that no eigenvalue was passed over. The latter by inertia: with mu between the k-th and the next value,

    n+(A - mu) = n+(D^2 - mu) + n+(-S^-1 - P^T (D^2 - mu)^-1 P) - n+(-S^-1),   A = D^2 + P S P^T,  P = [G, H],

counts the eigenvalues above mu exactly from a 2q x 2q matrix (Haynsworth), and must be k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from tunewise.measures._linalg import svd as top_singular
from tunewise.measures._linalg.base_spectra import BaseSpectrum
from tunewise.measures.updates.layer import LayerUpdate

RESIDUAL = 1e-11
"""Largest ||A x - lambda x|| over the largest eigenvalue that is taken for converged."""
CLUSTER = 1e-9
"""Eigenvalues nearer to each other than this part of the largest: their vectors are whatever the method makes them,
so the plain decomposition is asked, as everyone else's tools do."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class TopOfMerged:
    """The top of W0 + dW, fp64: `values` (k,), `cosines` (min(n, m), k) of its left vectors with those of W0."""

    values: Tensor
    cosines: Tensor
    solver: Literal["lanczos", "gram", "plain"]
    make_vectors: Callable[[], Tensor]

    @property
    def vectors(self) -> Tensor:
        """Left singular vectors (n, k)."""
        return self.make_vectors()


def top_of_merged(update: LayerUpdate, base: BaseSpectrum, count: int | None) -> TopOfMerged:
    """The `count` top left singular vectors of W0 + dW (all of them for None)."""
    side = min(update.shape)
    if count is not None and update.has_factors and 4 * (count + 1) < side:
        found = _by_lanczos(update, base, count)
        if found is not None:
            return found
    count = side if count is None else min(count, side)
    merged = update.merged()
    solver: Literal["gram", "plain"] = "plain" if update.has_factors or 4 * count >= side else "gram"
    u, values, _ = top_singular.of_dense(merged, count) if solver == "gram" else top_singular.plain(merged, count)
    return TopOfMerged(values, base.u.double().T @ u, solver, lambda: u)


def _by_lanczos(update: LayerUpdate, base: BaseSpectrum, count: int) -> TopOfMerged | None:
    """None where a check fails."""
    device = base.u.device
    x, s, yh = update.top_singular_vectors(update.rank_bound)
    kept = s > 1e-14 * s[0] if len(s) and s[0] > 0 else torch.zeros_like(s, dtype=torch.bool)
    x, s, yh = x[:, kept].to(device), s[kept].to(device), yh[kept].to(device)
    u = base.u.double()
    inside = u.T @ x  # (k, q)
    outside = _outside(u, x - u @ inside) if u.shape[0] > u.shape[1] else u[:, :0]
    w0_y = update.base.to(device).double() @ yh.T  # (n, q)
    rest = torch.zeros(outside.shape[1], len(s), dtype=torch.float64, device=device)
    g = torch.cat([inside, outside.T @ x])
    h = torch.cat([u.T @ w0_y, rest]) * s
    diagonal = torch.cat([base.values.double() ** 2, torch.zeros(outside.shape[1], dtype=torch.float64, device=device)])
    problem = _DiagonalPlusLowRank(*(t.cpu().numpy() for t in (diagonal, g, h, s**2)))
    found = problem.top(count)
    if found is None:
        return None
    squares, coordinates = (torch.from_numpy(a).to(device) for a in found)
    within, beyond = coordinates[: u.shape[1]], coordinates[u.shape[1] :]
    return TopOfMerged(squares.clamp(min=0).sqrt(), within, "lanczos", lambda: u @ within + outside @ beyond)


def _outside(u: Tensor, rest: Tensor) -> Tensor:
    """An orthonormal basis (n, p) of the columns of `rest`, which are free of u's span but for rounding."""
    rest = rest - u @ (u.T @ rest)  # twice is enough
    basis, size, _ = torch.linalg.svd(rest, full_matrices=False)
    basis = basis[:, size > 1e-12]
    if len(size) and float(size.min()) < 1e-4:  # what is small has been blown up, and its rounding with it
        basis = basis - u @ (u.T @ basis)
        basis = torch.linalg.qr(basis)[0]
    return basis


class _DiagonalPlusLowRank:
    """A = diag(d) + G H^T + H G^T + G diag(c) G^T; N x N, G and H N x q."""

    def __init__(self, d: _Array, g: _Array, h: _Array, c: _Array) -> None:
        self.d, self.g, self.h, self.c = d, g, h, c
        self.gt, self.ht = np.ascontiguousarray(g.T), np.ascontiguousarray(h.T)

    def times(self, x: _Array) -> _Array:
        x = x.ravel()
        along_g = self.gt @ x
        return self.d * x + self.g @ (self.ht @ x + self.c * along_g) + self.h @ along_g

    def top(self, count: int) -> tuple[_Array, _Array] | None:
        """The `count` largest eigenvalues, descending, and their vectors (N, count); None where a check fails."""
        size = len(self.d)
        start = np.random.default_rng(0).standard_normal(size)
        asked = count + 1  # the next one says how far the last is from it
        operator = LinearOperator((size, size), matvec=self.times, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=asked, which="LA", v0=start, ncv=min(size, 2 * asked + 12))
        except ArpackNoConvergence:
            return None
        order = np.argsort(values)[::-1]
        values, vectors = values[order], vectors[:, order]
        scale = values[0]
        if not scale > 0 or np.min(values[:-1] - values[1:]) <= CLUSTER * scale:
            return None
        products = np.stack([self.times(vectors[:, i]) for i in range(count)], axis=1)
        if np.linalg.norm(products - vectors[:, :count] * values[:count], axis=0).max() > RESIDUAL * scale:
            return None
        if self.number_above(values[count - 1], values[count]) != count:
            return None
        return values[:count].copy(), vectors[:, :count].copy()

    def number_above(self, high: float, low: float) -> int:
        """How many eigenvalues lie above a point between `low` and `high`, two neighbouring ones."""
        share = max((0.5, 0.4, 0.6, 0.3, 0.7), key=lambda f: np.abs(self.d - (low + f * (high - low))).min())
        shifted = self.d - (low + share * (high - low))
        rank = len(self.c)
        if rank == 0:
            return int((shifted > 0).sum())
        p = np.concatenate([self.g, self.h], axis=1)
        inverse = np.zeros((2 * rank, 2 * rank))  # of S = [[diag(c), I], [I, 0]]
        inverse[:rank, rank:] = inverse[rank:, :rank] = np.eye(rank)
        inverse[rank:, rank:] = -np.diag(self.c)
        schur = -inverse - p.T @ (p / shifted[:, None])
        # -S^-1 has as many positive eigenvalues as negative ones: `rank` of each.
        return int((shifted > 0).sum()) + int((np.linalg.eigvalsh(schur) > 0).sum()) - rank
