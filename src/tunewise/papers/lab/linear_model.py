"""The linear model of LoRA-One's theorems: y = (W0 + D) x with squared error.

W0 + dW is fitted to W0 + D, so the loss is 1/(2 N) sum ||(dW - D) x||^2. With the inputs' second moment M = X^T X / N
(m x m) the gradient in dW is (dW - D) M, and the one-step gradient is G = D M. W is out x in, as in the whole package;
2502.01235 writes x W, so its right space (of B) is the output side and its left space (of A) the input side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunewise.papers.lab.batched import normal


def low_rank(draw: torch.Generator, outputs: int, inputs: int, rank: int, condition: float) -> Tensor:
    """A random n x m matrix of that rank: uniform singular spaces, the singular values of `spectrum`."""
    left = torch.linalg.qr(normal(draw, outputs, rank)).Q
    right = torch.linalg.qr(normal(draw, inputs, rank)).Q
    return (left * spectrum(rank, condition)) @ right.T


def spectrum(rank: int, condition: float) -> Tensor:
    """1 ... 1 / condition in equal ratios: (rank,)."""
    return float(condition) ** -torch.linspace(0, 1, rank, dtype=torch.float64)


def moment(inputs: Tensor) -> Tensor:
    """M = X^T X / N of X (..., N, m)."""
    return inputs.mT @ inputs / inputs.shape[-2]
