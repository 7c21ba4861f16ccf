"""The top singular triples of a matrix without its full singular value decomposition."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor

Triples = tuple[Tensor, Tensor, Tensor]
"""U (n, k), singular values (k,) from the largest down, Vh (k, m)."""


def of_product(left: Tensor, right: Tensor) -> Triples:
    """All triples of `left @ right`, fp64, by QR of both factors and a small SVD: the product is never formed."""
    left, right = left.double(), right.double()
    q_left, r_left = torch.linalg.qr(left)  # (n, a), (a, q)
    q_right, r_right = torch.linalg.qr(right.T)  # (m, b), (b, q)
    u, values, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ u, values, vh @ q_right.T


def of_dense(matrix: Tensor, count: int) -> Triples:
    """The `count` top triples of a matrix (n, m), fp64, by the top eigenvectors of its smaller Gram matrix.

    Exact to rounding for values that are not small next to the largest one (relative error about 1e-16 (s_1 / s_k)^2),
    which the top ones of a dense weight are not; nothing iterates, so nothing can be missed. Where the count is a good
    part of the side, the plain SVD, which is then no slower.
    """
    matrix = matrix.double()
    side = min(matrix.shape)
    count = min(count, side)
    if 4 * count >= side:
        return plain(matrix, count)
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = scipy.linalg.eigh(gram.cpu().numpy(), subset_by_index=[side - count, side - 1])
    values = torch.from_numpy(squares[::-1].copy()).clamp(min=0).sqrt()
    if values[0] == 0 or values[-1] <= 1e-5 * values[0]:  # squaring has eaten the digits of the smaller ones
        return plain(matrix, count)
    here = torch.from_numpy(vectors[:, ::-1].copy()).to(matrix.device)
    values = values.to(matrix.device)
    if wide:
        return here, values, (here.T @ matrix) / values[:, None]
    return (matrix @ here) / values, values, here.T


def values_of_dense(matrix: Tensor) -> Tensor:
    """All singular values, descending, fp64; by the smaller Gram matrix where squaring loses no digits."""
    matrix = matrix.double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    squares = torch.linalg.eigvalsh(gram).flip(0)
    if len(squares) and float(squares[-1]) > 1e-8 * float(squares[0]):
        return squares.sqrt()
    return torch.linalg.svdvals(matrix)


def plain(matrix: Tensor, count: int) -> Triples:
    """By the full decomposition."""
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :count], values[:count], vh[:count]
