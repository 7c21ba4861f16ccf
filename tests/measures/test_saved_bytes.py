"""Bytes kept for the backward."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tunewise.measures.cost.counters import saved_for_backward


class Small(nn.Module):
    """A softmax and a tanh keep their own outputs, a product its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(loss=torch.softmax(torch.tanh(self.first(x)), 1).square().sum())


def test_each_storage_counts_once_and_nothing_is_kept_alive() -> None:
    """tanh's and softmax's outputs, the latter also as the square's input; the input of all was there before."""
    model = Small()
    assert saved_for_backward(model, {"x": torch.randn(5, 8)}) == 2 * 5 * 8 * 4
    known = weakref.ref(model.first.weight)
    del model
    gc.collect()
    assert known() is None
