"""Weights whose singular value decompositions are known by construction, before and after an update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from tunewise.measures.updates.layer import LayerUpdate

MIXED = 16
"""Left vectors that are mixed by a Hadamard matrix: each new one has |cos| 1/4 with each of these old ones."""
COSINE = 0.25


@dataclass(frozen=True)
class Planted:
    """An update with exactly `count` intruders among the top 10 of W0 + dW, each with largest |cos| `COSINE`."""

    update: LayerUpdate
    base: nn.Linear
    u: Tensor
    values: Tensor
    values_after: Tensor


def layer(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    made.weight.data = weight.clone()
    return made


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def plant(rows: int, columns: int, count: int, seed: int = 0) -> Planted:
    """W0 = U D V^T with D from 10 to 1. The last 16 left vectors are rotated among themselves, and `count` of these get
    values above all others; the rest keep their small ones. All else stays, so the SVD of W0 + dW is known."""
    side = min(rows, columns)
    u, v = orthonormal(rows, side, seed), orthonormal(columns, side, seed + 1)
    values = torch.linspace(10, 1, side, dtype=torch.float64)
    rotation = torch.tensor(hadamard(MIXED), dtype=torch.float64) / MIXED**0.5
    after = values.clone()
    after[-MIXED : -MIXED + count] = torch.linspace(30, 20, count, dtype=torch.float64)
    mixed, right = u[:, -MIXED:], v[:, -MIXED:].T
    left = mixed @ rotation * after[-MIXED:] - mixed * values[-MIXED:]
    base = layer(u * values @ v.T)
    update = LayerUpdate.of_factors("layer", base, left, right)
    return Planted(update, base, u, values, after.sort(descending=True).values)


def random_update(rows: int, columns: int, rank: int, size: float = 0.1, seed: int = 0) -> LayerUpdate:
    """A Gaussian W0 (fp64) and a Gaussian low-rank dW."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, m: int) -> Tensor:
        return torch.randn(n, m, generator=generator, dtype=torch.float64)

    base = layer(draw(rows, columns) / columns**0.5)
    return LayerUpdate.of_factors("layer", base, size * draw(rows, rank), draw(rank, columns) * columns**-0.5)
