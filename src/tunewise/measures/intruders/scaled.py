"""The causal check of intruders (arXiv 2410.21228, section 5): their singular values are scaled, and the model is
evaluated again. If intruders carry what was forgotten, or what was learnt, the loss moves with the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import MeasureError
from tunewise.measures._linalg.base_spectra import BaseSpectra, BaseSpectrum
from tunewise.measures._linalg.merged_svd import top_of_merged
from tunewise.measures.base import Values
from tunewise.measures.finished import Check, no_check
from tunewise.measures.intruders.compute import THRESHOLD, TOP_K, layer_intruders
from tunewise.measures.updates.layer import LayerUpdate
from tunewise.models.layers import linear_layers
from tunewise.store.records import Scores


class ScaledIntruders(Values):
    """The model with the singular values of all intruders multiplied by `factor`; 1 is the model as it is."""

    factor: float
    count: int
    """Intruders that are left."""
    loss: float | None
    """None without data to evaluate on."""
    metrics: dict[str, float]


def scaling_curve(
    updates: Mapping[str, LayerUpdate],
    spectra: BaseSpectra,
    factors: Sequence[float],
    *,
    threshold: float = THRESHOLD,
    top_k: int | None = TOP_K,
    model: nn.Module | None = None,
    score: Callable[[nn.Module], Scores] | None = None,
    check: Check = no_check,
) -> list[ScaledIntruders]:
    """Intruders left, and the loss, at each factor; `model` is merged, and restored bit for bit."""
    found = []
    for factor in factors:
        scaled: dict[str, LayerUpdate] = {}
        count = 0
        for name, update in updates.items():
            check()
            base = spectra.of(update.base)
            scaled[name] = scale_intruders(update, base, factor, threshold=threshold, top_k=top_k)
            count += layer_intruders(scaled[name], base, top_k).count(threshold)
        scores = None
        if model is not None and score is not None:
            with weights_replaced(model, {name: update.merged for name, update in scaled.items()}):
                scores = score(model)
        loss, metrics = (scores.loss, scores.metrics) if scores else (None, {})
        found.append(ScaledIntruders(factor=factor, count=count, loss=loss, metrics=metrics))
    return found


@torch.no_grad()
def scale_intruders(
    update: LayerUpdate,
    base: BaseSpectrum,
    factor: float,
    *,
    threshold: float = THRESHOLD,
    top_k: int | None = TOP_K,
) -> LayerUpdate:
    """dW + (factor - 1) sum_i s_i u_i v_i^T over the intruders of W0 + dW. 1 changes nothing, 0 removes them."""
    top = top_of_merged(update, base, top_k)
    places = torch.nonzero(top.cosines.abs().amax(dim=0) < threshold).flatten()
    if len(places) == 0 or factor == 1:
        return update
    u = top.vectors[:, places]
    # s_i v_i^T = u_i^T (W0 + dW), so no right vectors are needed.
    if update.left is not None and update.right is not None:
        sv = u.T @ update.base.double() + (u.T @ update.left) @ update.right
        left = torch.cat([update.left, (factor - 1) * u], dim=1)
        return LayerUpdate(update.name, update.shape, update.make_base, left, torch.cat([update.right, sv]))
    sv = u.T @ update.merged()
    return LayerUpdate(
        update.name, update.shape, update.make_base, make_dense=lambda: update.delta() + (factor - 1) * (u @ sv)
    )


@contextmanager
def weights_replaced(model: nn.Module, weights: Mapping[str, Callable[[], Tensor]]) -> Iterator[None]:
    """Other weights (out x in) within the block. Raises `MeasureError` where one does not fit."""
    layers = linear_layers(model)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, make in weights.items():
            weight = getattr(layers.get(name), "weight", None)
            if type(weight) is not nn.Parameter:
                raise MeasureError(f"layer {name} is not in the model, or has no plain weight that could be changed")
            new = make().T if isinstance(layers[name], Conv1D) else make()
            if new.shape != weight.shape:
                raise MeasureError(f"layer {name} is {tuple(weight.shape)} in the model and {tuple(new.shape)} here")
            kept.append((weight.data, weight.data.clone()))
            weight.data.copy_(new)
        yield
    finally:
        with torch.no_grad():
            for place, values in kept:
                place.copy_(values)
