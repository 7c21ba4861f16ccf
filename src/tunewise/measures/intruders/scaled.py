"""The causal check of intruders (arXiv 2410.21228, section 5): their singular values are scaled, and the model looked
at again. If intruders carry what was forgotten, or what was learnt, the loss moves with the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import MeasureError
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures.intruders.compute import THRESHOLD, TOP_K, layer_intruders, scale_intruders
from tunewise.measures.updates.layer import LayerUpdate
from tunewise.models.layers import linear_layers
from tunewise.store.records import Scores


@dataclass(frozen=True)
class Scaled:
    """What is found with all intruders' singular values times `factor`: 1 is the model as it is."""

    factor: float
    count: int
    """Intruders that are counted then."""
    scores: Scores | None
    """Loss and metrics, where there is data to evaluate on."""


def scaling_curve(
    updates: Mapping[str, LayerUpdate],
    spectra: BaseSpectra,
    factors: Sequence[float],
    *,
    threshold: float = THRESHOLD,
    top_k: int | None = TOP_K,
    model: nn.Module | None = None,
    score: Callable[[nn.Module], Scores] | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Scaled]:
    """Intruders left, and the loss, at each factor.

    Args:
        model: the fine-tuned model with plain weights (adapters merged); its layers of the updates' names get
            W0 + dW with intruders scaled, one factor after the other, and are put back bit for bit.
        score: evaluates that model.
    """
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
        found.append(Scaled(factor, count, scores))
    return found


@contextmanager
def weights_replaced(model: nn.Module, weights: Mapping[str, Callable[[], Tensor]]) -> Iterator[None]:
    """The model with other weights (out x in) in the named linear layers until the end of the block, then bit for bit
    as it was. Raises `MeasureError` where a layer is missing or has no plain weight of that shape."""
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
