"""Folds: the share of an adapter that is written into its layer's weight W, always from W0's kept values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.methods.adapters.products import oriented


@dataclass
class Slot:
    """`columns` of `rows` are to be `base` + s `block` (all of `rows` where columns is None)."""

    rows: Tensor
    columns: Tensor | None
    base: Tensor
    block: Tensor


class Fold(ABC):
    """What one adapter has written into its layer's weight."""

    follows_updates = False
    """Whether the trained B itself is in W, so that W must be written again after each update."""
    holds_weights = False
    """Whether the trained tensor is W's columns themselves rather than an update of them."""

    def __init__(self, layer: Any, name: str, layer_name: str) -> None:
        self.layer = layer
        self.name = name
        self.layer_name = layer_name
        self.active = [name]
        self.weight: Tensor = layer.get_base_layer().weight
        self.up: nn.Module = layer.lora_B[name]
        self.scale: float = layer.scaling[name]
        self.written: tuple[Any, int, int, Any] = (None, -1, 0, None)
        """B in the weight, its version, its address, and its storage, so that no other tensor gets that address."""

    @property
    def b(self) -> Tensor:
        return self.up._parameters["weight"]  # type: ignore[return-value]

    @property
    def view(self) -> Tensor:
        """The weight as it is now, n x m (out x in), without a graph."""
        return oriented(self.layer.get_base_layer()).detach()

    @abstractmethod
    def undo(self) -> None:
        """Make W equal to W0 again, bit for bit."""

    @abstractmethod
    def pristine(self) -> Tensor:
        """A copy of W0 in the layer's own orientation; W itself keeps the fold."""

    @abstractmethod
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The layer's output as one autograd node; None where PEFT's forward must run."""

    def slots(self) -> list[Slot]:
        """Where each part of B goes in W."""
        return []

    def write(self) -> None:
        """Write the present B into W."""
        if self.follows_updates:
            WriteBack([self]).run()

    def is_stale(self) -> bool:
        """Whether B has changed since `write`, as far as torch counts changes, or is another tensor now."""
        now, version, address, _ = self.written
        b = self.b
        return self.follows_updates and (b is not now or version != b._version or address != b.data_ptr())

    def pristine_of(self, weight: Tensor) -> Tensor:
        """W0 for a call with another weight: W0 itself (`state_dict`) or a copy of W (`named_parameters`)."""
        pristine, like = self.pristine(), self.weight
        if (weight.shape, weight.dtype, weight.device) == (like.shape, like.dtype, like.device):
            if torch.equal(weight, pristine):
                return weight
            if torch.equal(weight, like):
                return pristine
        raise RuntimeError(
            f"layer {self.layer_name}: a weight is called that is neither W0 nor the one that the update was folded "
            "into; attach with fold='never'"
        )


class WriteBack:
    """Writes the trained columns of many layers into their weights: one foreach sum for all that share a scale, and one
    foreach copy for all runs of columns. Other columns are copied layer by layer: no single view holds them."""

    def __init__(self, folds: Sequence[Fold]) -> None:
        self._places = [
            (fold, fold.b, fold.b.data_ptr(), fold.b.detach(), fold.weight, fold.weight.data_ptr()) for fold in folds
        ]
        as_they_are: list[Slot] = []
        sums: dict[tuple[float, bool], list[Slot]] = defaultdict(list)
        for fold in folds:
            if fold.holds_weights and fold.scale == 1.0:
                as_they_are += fold.slots()
            else:
                sums[fold.scale, fold.holds_weights] += fold.slots()
        self._values = [slot.block for slot in as_they_are]
        self._sums = [
            (scale, holds, [s.base for s in slots], [s.block for s in slots]) for (scale, holds), slots in sums.items()
        ]
        slots = as_they_are + [slot for group in sums.values() for slot in group]
        self._runs = [(i, slot.rows) for i, slot in enumerate(slots) if slot.columns is None]
        self._sampled = [(i, slot.rows, slot.columns) for i, slot in enumerate(slots) if slot.columns is not None]

    def fits(self) -> bool:
        """Whether every B and every weight is still the same tensor."""
        return all(
            fold.up._parameters["weight"] is b and b.data_ptr() == at and weight.data_ptr() == there
            for fold, b, at, _, weight, there in self._places
        )

    @torch.no_grad()
    def run(self) -> None:
        values = self._values
        for scale, holds, bases, blocks in self._sums:
            updates = torch._foreach_sub(blocks, bases) if holds else blocks
            values = values + list(torch._foreach_add(bases, updates, alpha=scale))
        if self._runs:
            torch._foreach_copy_([rows for _, rows in self._runs], [values[i] for i, _ in self._runs])
        for i, rows, columns in self._sampled:
            rows.index_copy_(1, columns, values[i].to(rows.dtype))
        for fold, b, at, held, *_ in self._places:
            fold.written = (b, b._version, at, held)
