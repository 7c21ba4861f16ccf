"""A network whose loss is a known quadratic of its weights, for measures of the loss around a minimum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.measures._weight_space.batches import FixedBatches


class Quadratic(nn.Module):
    """Batch k's loss is 1/2 (w - c_k)^T H (w - c_k) + 1 over the weights w of two linear layers, rows end to end; its
    mean over batches differs from that at the mean of the c_k by a constant. `inputs["shift"]` is c_k."""

    def __init__(self, hessian: Tensor, shapes: list[tuple[int, int]], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for n, m in shapes:
            layer = nn.Linear(m, n, dtype=hessian.dtype)
            layer.weight.data = torch.randn(n, m, generator=generator, dtype=torch.float64).to(hessian.dtype)
            self.layers.append(layer)
        self.register_buffer("hessian", hessian)

    def weights(self) -> Tensor:
        return torch.cat([layer.weight.flatten() for layer in self.layers])

    def forward(self, shift: Tensor) -> Any:
        away = self.weights() - shift[0]
        return SimpleNamespace(logits=(0.5 * away @ self.hessian @ away + 1).reshape(1))


def batches(model: Quadratic, count: int = 3, size: float = 0.3, seed: int = 1) -> FixedBatches:
    """Batches with shifts around the origin."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.hessian.shape[0])
    shifts = [size * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    inputs = [{"shift": shift.to(model.hessian.dtype)} for shift in shifts]
    return FixedBatches(inputs, [torch.zeros(1)] * count, lambda output, _: output)


def positive(size: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random positive definite matrix with a wide spectrum."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(-2, 1, size, dtype=torch.float64)
    return (basis * spectrum @ basis.T).to(dtype)
