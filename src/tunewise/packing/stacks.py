"""The factors of several runs on one layer, side by side in one tensor, each run's parameter a view of its part.

An optimizer that steps a run's parameter writes into the stack, and a run's gradient is a part of the stack's: nothing
is gathered or scattered from step to step. Runs of one kind (the same tensors trained, one rank) form a stack, so no
rank is padded. Runs are sorted by kind, and each stack covers a run of neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.errors import TunewiseError
from tunewise.methods.columns import ColumnAdapter
from tunewise.methods.layer_adapter import LayerAdapter, adapters_of


class NotPackable(TunewiseError):
    """These runs can't be computed together; each is to be run by itself."""


@dataclass
class Stack:
    """dW_k = scale_k B_k A_k (or B_k on selected columns) for the runs `start` <= k < `stop` of a pack.

    a: (runs, r, m), or None where columns are selected; columns: (runs, r) int64, or None; b: (runs, n, r);
    origin: (runs, n, r), W0's columns where b holds the weights themselves; scale: (runs, 1, 1).
    """

    start: int
    stop: int
    a: Tensor | None
    columns: Tensor | None
    b: Tensor
    origin: Tensor | None
    scale: Tensor

    @property
    def update(self) -> Tensor:
        """B as an update (runs, n, r), the scale not in it."""
        return self.b if self.origin is None else self.b - self.origin

    @property
    def trained(self) -> list[Tensor]:
        """The stacked tensors that are trained: A, B, or both."""
        return [t for t in (self.a, self.b) if t is not None and t.requires_grad]

    def of(self, runs: Sequence[int]) -> Stack | None:
        """What of it belongs to these runs of the pack, in ascending order, counted by their places there: with
        gradients of its own, views where the runs are neighbours. None where nothing does."""
        own = [(place, k - self.start) for place, k in enumerate(runs) if self.start <= k < self.stop]
        if not own:
            return None
        (begin, first), (_, last) = own[0], own[-1]
        near = last - first + 1 == len(own)
        rows = slice(first, last + 1) if near else [k for _, k in own]

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach()[rows].requires_grad_(tensor.requires_grad)

        def cut_if(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else cut(tensor)

        a, columns, origin = map(cut_if, (self.a, self.columns, self.origin))
        return Stack(begin, begin + len(own), a, columns, cut(self.b), origin, cut(self.scale))


class Factors:
    """One adapted layer of one run: PEFT's LoRA layer, its adapter's tensors, and what earlier links left."""

    def __init__(self, layer: Any, name: str) -> None:
        self.layer = layer
        self.name = name
        self.adapter: LayerAdapter | None = adapters_of(layer).get(name)
        if self.adapter is not None and self.adapter.target.fused:
            raise NotPackable(f"layer {self.adapter.target.name} is adapted in slices of a fused projection")

    @property
    def selects(self) -> bool:
        return isinstance(self.adapter, ColumnAdapter)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Runs of one kind can be stacked."""
        holds = isinstance(self.adapter, ColumnAdapter) and self.adapter.holds_weights
        return (self.selects, holds, self.a.requires_grad, self.b.requires_grad, self.b.shape[1])

    @property
    def a(self) -> nn.Parameter:
        weight: nn.Parameter = self.layer.lora_A[self.name].weight
        return weight

    @property
    def b(self) -> nn.Parameter:
        weight: nn.Parameter = self.layer.lora_B[self.name].weight
        return weight

    @property
    def scale(self) -> float:
        return float(self.layer.scaling[self.name])

    @property
    def links(self) -> int:
        """Finished links."""
        return 0 if self.adapter is None else len(self.adapter.finished)

    def earlier(self) -> tuple[Tensor, Tensor] | None:
        """(A (j r, m) or columns (j r,), B (n, j r)) of all finished links side by side; None where there are none."""
        if self.adapter is None or not self.adapter.finished:
            return None
        where, b = zip(*self.adapter.finished, strict=True)
        return torch.cat(where).to(self.b.device), torch.cat(b, dim=1).to(self.b.device)


def stack_up(runs: Sequence[Factors]) -> list[Stack]:
    """The stacks of a layer, trained ones first; the runs' parameters become views of them. `runs` is
    sorted by kind."""
    stacks: list[Stack] = []
    start = 0
    for _, found in groupby(runs, key=lambda one: one.kind):
        members = list(found)
        stacks.append(_trained(members, start))
        start += len(members)
    start = 0
    shapes = [(one.selects, None if (past := one.earlier()) is None else past[1].shape[1]) for one in runs]
    for (selects, rank), numbers in groupby(range(len(runs)), key=lambda i: shapes[i]):
        members = [runs[i] for i in numbers]
        if rank is not None:
            stacks.append(_finished(members, start, selects))
        start += len(members)
    return stacks


def _trained(members: Sequence[Factors], start: int) -> Stack:
    first = members[0]
    columns = origin = a = None
    if first.selects:
        adapters = [one.adapter for one in members if isinstance(one.adapter, ColumnAdapter)]
        columns = torch.stack([adapter.columns for adapter in adapters])
        if adapters[0].holds_weights:
            origin = torch.stack([adapter._origin for adapter in adapters if adapter._origin is not None])
    else:
        a = _resident([one.a for one in members])
    b = _resident([one.b for one in members])
    return Stack(start, start + len(members), a, columns, b, origin, _scales(members))


def _finished(members: Sequence[Factors], start: int, selects: bool) -> Stack:
    past = [found for one in members if (found := one.earlier()) is not None]
    where = torch.stack([a for a, _ in past])
    b = torch.stack([b for _, b in past])
    return Stack(
        start, start + len(members), None if selects else where, where if selects else None, b, None, _scales(members)
    )


def _scales(members: Sequence[Factors]) -> Tensor:
    return torch.tensor([one.scale for one in members], device=members[0].b.device)[:, None, None]


@torch.no_grad()
def _resident(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters' values in one leaf tensor (runs, ...), of which each parameter is a view from now on."""
    stack = torch.stack([p.detach() for p in parameters])
    for parameter, part in zip(parameters, stack, strict=True):
        parameter.data = part
    return stack.requires_grad_(parameters[0].requires_grad)
