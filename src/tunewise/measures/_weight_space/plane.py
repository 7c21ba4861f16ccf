"""Moving a model's weights over a plane: W = W* + x d1 + y d2.

While a plane is open the moved weights are in one buffer, so that a point costs one pass over it. A row (one y) has an
anchor W* + y d2, and each of its points is computed from that: no error adds up along the row, and a point has the same
bits in any order of visits. The model's own tensors are untouched, and closing the plane restores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from tunewise.errors import MeasureError
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.directions import Direction
from tunewise.measures.finished import Check, no_check


class Plane:
    """Two directions through a model's weights, for a `with` block; takes four times the memory of the weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], first: Direction, second: Direction) -> None:
        self.parameters = {name: parameters[name] for name in parameters if name in first or name in second}
        kinds = {(p.dtype, p.device) for p in self.parameters.values()}
        if len(kinds) != 1:
            raise MeasureError("the weights to move are of more than one precision or device")
        ((self.dtype, self.device),) = kinds
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.places: dict[str, slice] = {}
        size = 0
        for name, parameter in self.parameters.items():
            self.places[name] = slice(size, size + parameter.numel())
            size += parameter.numel()
        self.size = size
        self._first, self._second = self._flat(first), self._flat(second)
        self._anchor = torch.empty_like(self._first)
        self._scratch = None if self.wide == self.dtype else torch.empty_like(self._first)
        self._live = torch.empty(size, dtype=self.dtype, device=self.device)
        self._own: dict[str, Tensor] = {}

    def __enter__(self) -> Plane:
        self._own = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = self._live[self.places[name]].view(parameter.shape)
        self.to_row(0.0)
        self.move(0.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = self._own[name]
        self._own = {}

    def to_row(self, y: float) -> None:
        """The points that follow lie at this y."""
        for name, own in self._own.items():
            place = self.places[name]
            torch.add(own.detach().flatten().to(self.wide), self._second[place], alpha=y, out=self._anchor[place])

    def move(self, x: float) -> None:
        """The model's weights become those of (x, the row's y)."""
        if self._scratch is None:
            torch.add(self._anchor, self._first, alpha=x, out=self._live)
        else:
            self._live.copy_(torch.add(self._anchor, self._first, alpha=x, out=self._scratch))

    def _flat(self, direction: Direction) -> Tensor:
        flat = torch.zeros(self.size, dtype=self.wide, device=self.device)
        for name, place in self.places.items():
            if name in direction:
                flat[place].copy_(direction[name].flatten())
        return flat


def second_differences(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    directions: Sequence[tuple[Direction, float]],
    batches: FixedBatches,
    check: Check = no_check,
) -> Tensor:
    """(L(h) + L(-h) - 2 L(0)) / h^2 along each (direction, h) for each batch, fp64 (directions, batches)."""
    here = batches.evaluate(model).cpu()
    found = []
    for direction, step in directions:
        with Plane(parameters, direction, {}) as plane:
            sides = []
            for x in (step, -step):
                check()
                plane.move(x)
                sides.append(batches.evaluate(model).cpu())
        found.append((sides[0] + sides[1] - 2 * here) / step**2)
    return torch.stack(found)
