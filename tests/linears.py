"""Linear networks of which everything is known in closed form, with a method on them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from tunewise import attach
from tunewise.training.linearised import frozen_copy


def jitter(model: nn.Module, size: float = 0.05) -> None:
    """Move every trained tensor away from its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


class Linears(nn.Module):
    """Linear layers one behind the other, called `layers.I`; the logits are the last one's output."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList([nn.Linear(m, n, bias=False, dtype=torch.float64) for m, n in pairs])

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        for layer in self.layers:
            x = layer(x)
        return SequenceClassifierOutput(logits=x)


def adapted(net: nn.Module, method: str) -> tuple[Any, nn.Module]:
    twin = frozen_copy(net, own_values=False)
    model = attach(net, method, rank=2, targets=["layers.*"], fold="never").double()
    jitter(model, 0.5)
    return model, twin
