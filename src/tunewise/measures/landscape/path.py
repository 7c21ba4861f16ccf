"""The path of a training through weight space, relative to the selected epoch, and its principal directions
(1712.09913, section 7.2).

The weights are those of the merged model. The T x parameters matrix of displacements is never formed: the T x T Gram
matrix is summed layer by layer, and its eigenvectors give the principal directions in a second pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import MeasureError
from tunewise.measures._weight_space.directions import Direction
from tunewise.measures.finished import FinishedRun
from tunewise.methods.attachment import attachment
from tunewise.methods.delta import layer_delta
from tunewise.methods.loading import load
from tunewise.models.layers import Target, linear_layers
from tunewise.training.snapshots import Snapshot, belongs_to, collect_state, load_state

BLOCK = 4_000_000
"""Numbers of a tensor that are read at a time, in every snapshot."""
LEAST_SPREAD = 1e-10
"""A second component with less than this share of the first one's variance is rounding."""


class Path:
    """Displacements theta_t - theta* of the snapshots. Raises `MeasureError` for fewer than three of them."""

    def __init__(self, run: FinishedRun) -> None:
        self.snapshots: list[Snapshot] = run.snapshots
        if len(self.snapshots) < 3:
            raise MeasureError(f"{len(self.snapshots)} snapshots span no plane; at least 3 are needed")
        for snapshot in self.snapshots:
            snapshot.check()
        # Loaded rather than built: LoRA-One's start would take a gradient that is not needed.
        self.model: nn.Module = load(run.task.load_model(run.spec.seed), run.adapter, trainable=True)
        self.centre = collect_state(self.model)
        self.method = attachment(self.model).method
        adapted = {t.name: t for t in attachment(self.model).targets} if self.method.adapts else {}
        self.adapted: dict[str, Target] = {f"{name}.weight": target for name, target in adapted.items()}
        self.direct = {
            _plain_name(key.removeprefix("trained.")): key
            for key in self.centre
            if key.startswith("trained.") and (not self.method.adapts or ".modules_to_save." in key)
        }

    @property
    def steps(self) -> list[int]:
        return [snapshot.step for snapshot in self.snapshots]

    def displacements(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, (T, rows, *rest)) of everything trained, large tensors in consecutive blocks of rows."""
        for name, key in self.direct.items():
            centre = self.centre[key]
            wide = torch.promote_types(centre.dtype, torch.float32)
            step = max(1, BLOCK * len(centre) // max(centre.numel(), 1))
            for start in range(0, len(centre), step):
                path = torch.stack([s.rows(key, start, start + step).to(wide) for s in self.snapshots])
                yield name, path - centre[start : start + step].to(wide)
        for name, target in self.adapted.items():
            yield name, self._of_layer(target)

    def _of_layer(self, target: Target) -> Tensor:
        # A method of PEFT's own may share trained tensors between layers, so it is put back whole.
        layer = None if self.method.passed_through else target.name
        load_state(self.model, _of(self.centre, layer), layer)
        centre = layer_delta(self.model, target)
        path = []
        for snapshot in self.snapshots:
            load_state(self.model, snapshot.tensors(layer), layer)
            path.append(layer_delta(self.model, target) - centre)
        found = torch.stack(path)
        transposed = isinstance(linear_layers(self.model_inside())[target.name], Conv1D)
        return found.transpose(1, 2) if transposed else found

    def model_inside(self) -> nn.Module:
        """The transformers model under PEFT's wrapper."""
        base = getattr(self.model, "get_base_model", None)
        found: nn.Module = base() if callable(base) else self.model
        return found


@dataclass(frozen=True)
class Components:
    """Two principal directions, their shares of the variance, and `coordinates` (T, 2) of theta_t - theta*."""

    first: Direction
    second: Direction
    explained: tuple[float, float]
    coordinates: Tensor


def gram(displacements: Iterator[tuple[str, Tensor]]) -> Tensor:
    """<theta_s - theta*, theta_t - theta*>, (T, T) fp64, added up over parameters."""
    total: Tensor | None = None
    for _, path in displacements:
        flat = path.flatten(1).double()
        product = (flat @ flat.T).cpu()
        total = product if total is None else total + product
    if total is None:
        raise MeasureError("nothing was trained, so there is no path")
    return total


def principal(path: Path) -> Components:
    """PCA of the displacements, unit directions. Raises `MeasureError` where the path is a line or a point."""
    products = gram(path.displacements())
    weights, shares = combinations(products)
    pieces: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for name, moved in path.displacements():
        for blocks, weight in zip(pieces, weights.T, strict=True):
            blocks.setdefault(name, []).append(torch.tensordot(weight.to(moved.dtype), moved, dims=1))
    first, second = ({name: torch.cat(blocks) for name, blocks in found.items()} for found in pieces)
    return Components(first, second, shares, products @ weights)


def combinations(products: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Weights (T, 2) of the displacements in both directions, and shares of the variance, from the Gram matrix."""
    middle = products - products.mean(0) - products.mean(1, keepdim=True) + products.mean()
    values, vectors = torch.linalg.eigh(middle)
    top = values[-1]
    if not bool(values[-2] > LEAST_SPREAD * top) or not bool(top > 0):
        raise MeasureError("the training went along a line, or not at all, so its path spans no plane")
    weights = vectors[:, [-1, -2]] / values[[-1, -2]].sqrt()
    start = products[0] @ weights
    weights = weights * torch.where(start < 0, -1.0, 1.0)
    total = values.clamp(min=0).sum()
    return weights, (float(values[-1] / total), float(values[-2] / total))


def _plain_name(name: str) -> str:
    """A parameter's name in the model without PEFT."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")


def _of(state: Mapping[str, Tensor], layer: str | None) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if belongs_to(key, layer)}
