"""Intruder dimensions (arXiv 2410.21228): top singular vectors of the fine-tuned weight that the pretrained one lacks.

A left singular vector of W0 + dW among the top k is an intruder where its largest |cos| with all left singular
vectors of W0 lies below a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra, BaseSpectrum
from tunewise.measures._linalg.merged_svd import top_of_merged
from tunewise.measures.finished import FinishedRun
from tunewise.measures.settings import IntruderSettings
from tunewise.measures.updates.folder import updates_of_run
from tunewise.measures.updates.layer import LayerUpdate

TOP_K = 10
THRESHOLD = 0.6
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True)
class LayerIntruders:
    """The top singular vectors of one layer's W0 + dW, from the largest singular value down."""

    name: str
    shape: tuple[int, int]
    cosines: tuple[float, ...]
    """Largest |cos| of each vector with W0's left singular vectors."""
    values: tuple[float, ...]
    """Their singular values."""
    how: str
    """'lanczos', 'gram' or 'plain'; see `low_rank_change`."""

    @property
    def baseline(self) -> float:
        """What a random direction would have."""
        return random_baseline(*self.shape)

    def count(self, threshold: float = THRESHOLD) -> int:
        """Vectors whose largest |cos| is below `threshold`, a number in (0, 1]."""
        return sum(cosine < threshold for cosine in self.cosines)

    def intruders(self, threshold: float = THRESHOLD) -> list[int]:
        """Their places from the top, 0 the largest singular value's."""
        return [place for place, cosine in enumerate(self.cosines) if cosine < threshold]


def random_baseline(rows: int, columns: int | None = None) -> float:
    """The largest |cos| that a random direction in `rows` dimensions has with the left singular vectors of a
    rows x columns weight: about sqrt(2 ln k / rows) for k = min(rows, columns) of them."""
    vectors = rows if columns is None else min(rows, columns)
    return min(1.0, math.sqrt(2 * math.log(vectors) / rows)) if vectors > 1 else 1.0


@torch.no_grad()
def layer_intruders(update: LayerUpdate, base: BaseSpectrum, top_k: int | None = TOP_K) -> LayerIntruders:
    """Cosines of the top `top_k` left singular vectors of W0 + dW (None: of all) with all of W0's."""
    top = top_of_merged(update, base, top_k)
    cosines = top.cosines.abs().amax(dim=0).clamp(max=1.0)
    return LayerIntruders(update.name, update.shape, tuple(cosines.tolist()), tuple(top.values.tolist()), top.how)


@torch.no_grad()
def scale_intruders(
    update: LayerUpdate,
    base: BaseSpectrum,
    factor: float,
    *,
    threshold: float = THRESHOLD,
    top_k: int | None = TOP_K,
) -> LayerUpdate:
    """The update with its intruders' singular values multiplied by `factor` (2410.21228, section 5):
    dW + (factor - 1) sum_i s_i u_i v_i^T over the intruders of W0 + dW. 1 leaves it as it is, 0 takes them out."""
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


def all_intruders(
    updates: Mapping[str, LayerUpdate],
    spectra: BaseSpectra,
    top_k: int | None = TOP_K,
    check: Callable[[], None] = lambda: None,
) -> list[LayerIntruders]:
    """Layer by layer, one in memory at a time; `check` is called before each."""
    found = []
    for update in updates.values():
        check()
        found.append(layer_intruders(update, spectra.of(update.base), top_k))
    return found


def curve(layers: Sequence[LayerIntruders], thresholds: Sequence[float] = THRESHOLDS) -> list[int]:
    """Intruders in all layers together at each threshold."""
    return [sum(layer.count(t) for layer in layers) for t in thresholds]


def intruders(run: FinishedRun, check: Callable[[], None], settings: IntruderSettings | None = None) -> dict[str, Any]:
    """Cosines of the top vectors of every layer, from which every threshold's count follows. Raises `MeasureError`
    where no weight changes, or PEFT can't merge the method."""
    chosen = settings or IntruderSettings()
    updates = updates_of_run(run)
    top_k = None if chosen.top_k == "all" else chosen.top_k
    found = all_intruders(updates, BaseSpectra(run.cache / FOLDER), top_k, check)
    return {"top_k": chosen.top_k, "threshold": chosen.threshold, **summary(found, chosen.threshold)}


def summary(layers: Sequence[LayerIntruders], threshold: float) -> dict[str, Any]:
    """All layers as plain data."""
    return {
        "count": sum(layer.count(threshold) for layer in layers),
        "vectors": sum(len(layer.cosines) for layer in layers),
        "layers": {layer.name: describe(layer, threshold) for layer in layers},
    }


def describe(layer: LayerIntruders, threshold: float) -> dict[str, Any]:
    """One layer as plain data."""
    return {
        "shape": list(layer.shape),
        "count": layer.count(threshold),
        "baseline": layer.baseline,
        "cosines": list(layer.cosines),
        "values": list(layer.values),
    }
