"""Small modules with one layer of each type that is adapted, and the dense reference of a column adapter on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

IN, OUT = 24, 18
RANK = 4


class Wrapped(nn.Module):
    """A layer called `layer`; with `fused`, GPT-2's projection of q, k and v, of which q and v are adapted."""

    def __init__(self, layer: nn.Module, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            block = nn.Module()
            block.attn = nn.Module()
            block.attn.c_attn = layer
            self.h = nn.ModuleList([block])
        else:
            self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.h[0].attn.c_attn(x) if self.fused else self.layer(x)  # type: ignore[no-any-return]


KINDS = ["linear", "linear without bias", "conv1d", "fused"]


def make(kind: str, seed: int = 0) -> Wrapped:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer: Any
        if kind.startswith("linear"):
            layer = nn.Linear(IN, OUT, bias="without" not in kind)
        else:
            layer = Conv1D(OUT, IN)
            layer.weight.data = torch.randn(IN, OUT, generator=generator) * 0.3
            layer.bias.data = torch.randn(OUT, generator=generator)
    return Wrapped(layer, kind == "fused")


def targets(kind: str) -> list[str]:
    return ["query", "value"] if kind == "fused" else ["layer"]


def adapted(model: Any) -> Any:
    """The one PEFT layer of an adapted `Wrapped`."""
    inner = model.get_base_model()
    return inner.h[0].attn.c_attn if inner.fused else inner.layer


def parts(kind: str) -> list[tuple[int, int]]:
    """The adapted runs of outputs."""
    third = OUT // 3
    return [(0, third), (2 * third, OUT)] if kind == "fused" else [(0, OUT)]


class Dense:
    """x -> x (W0 + sum over links of s B A)^T + bias with A as a matrix: what a column adapter has to equal."""

    def __init__(self, kind: str, weight: Tensor, bias: Tensor | None) -> None:
        self.kind, self.bias = kind, bias
        self.weight = weight.detach().clone()

    def update(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """s B A in its rows of the weight, differentiable in b."""
        rows, done = torch.zeros(OUT, 0, dtype=b.dtype), 0
        dense = torch.zeros(OUT, IN, dtype=b.dtype)
        for i, (start, stop) in enumerate(parts(self.kind)):
            block = b[done : done + stop - start] @ a[i * RANK : (i + 1) * RANK].to(b.dtype)
            done += stop - start
            dense = dense + torch.cat([rows.new_zeros(start, IN), scale * block, rows.new_zeros(OUT - stop, IN)])
        return dense

    def finish(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.weight = self.weight + self.update(a, b.detach(), scale)

    def __call__(self, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return torch.nn.functional.linear(x, self.weight + self.update(a, b, scale), self.bias)


def out_in(kind: str, weight: Tensor) -> Tensor:
    """A layer's weight as (out, in)."""
    return weight if kind.startswith("linear") else weight.T
