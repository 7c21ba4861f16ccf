"""Intruder dimensions (arXiv 2410.21228): top singular vectors of the fine-tuned weight that the pretrained one lacks.

A left singular vector of W0 + dW among the top k is an intruder where its largest |cos| with all left singular
vectors of W0 lies below a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field

from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra, BaseSpectrum
from tunewise.measures._linalg.merged_svd import top_of_merged
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.measures.updates.folder import updates_of_run
from tunewise.measures.updates.layer import LayerUpdate

TOP_K = 10
THRESHOLD = 0.6


class IntruderSettings(MeasureSettings):
    """Which singular vectors are examined, and when one counts as an intruder."""

    top_k: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        TOP_K, description="singular vectors of each weight, from the largest value down, or 'all'"
    )
    threshold: float = Field(THRESHOLD, gt=0, le=1, description="a vector counts if its largest |cos| is below")


class LayerIntruders(Values):
    """The top singular vectors of one layer's W0 + dW, from the largest singular value down."""

    name: str
    shape: tuple[int, int]
    baseline: float
    """The largest |cos| of a random direction."""
    cosines: tuple[float, ...]
    """Largest |cos| of each vector with W0's left singular vectors."""
    values: tuple[float, ...]
    """Their singular values."""
    solver: Literal["lanczos", "gram", "plain"]

    def count(self, threshold: float = THRESHOLD) -> int:
        """Vectors whose largest |cos| is below `threshold`."""
        return len(self.intruders(threshold))

    def intruders(self, threshold: float = THRESHOLD) -> list[int]:
        """Their places from the top; 0 is that of the largest singular value."""
        return [place for place, cosine in enumerate(self.cosines) if cosine < threshold]


class IntrudersResult(MeasureResult):
    top_k: int | Literal["all"]
    threshold: float
    layers: dict[str, LayerIntruders]

    @property
    def vectors(self) -> int:
        """Vectors that were examined, in all layers."""
        return sum(len(layer.cosines) for layer in self.layers.values())

    def count(self, threshold: float | None = None) -> int:
        """Intruders in all layers, at the threshold of the settings unless given."""
        return sum(layer.count(self.threshold if threshold is None else threshold) for layer in self.layers.values())


def compute(run: FinishedRun, settings: IntruderSettings, check: Check) -> IntrudersResult:
    """Raises `MeasureError` where no weight changes, or PEFT can't merge the method."""
    return intruders_of(updates_of_run(run), BaseSpectra(run.cache / FOLDER), settings, check)


def intruders_of(
    updates: Mapping[str, LayerUpdate], spectra: BaseSpectra, settings: IntruderSettings, check: Check = no_check
) -> IntrudersResult:
    """Layer by layer, one in memory at a time."""
    layers = {}
    top_k = None if settings.top_k == "all" else settings.top_k
    for name, update in updates.items():
        check()
        layers[name] = layer_intruders(update, spectra.of(update.base), top_k)
    return IntrudersResult(top_k=settings.top_k, threshold=settings.threshold, layers=layers)


@torch.no_grad()
def layer_intruders(update: LayerUpdate, base: BaseSpectrum, top_k: int | None = TOP_K) -> LayerIntruders:
    """Cosines of the top `top_k` left singular vectors of W0 + dW (None: of all) with all of W0's."""
    top = top_of_merged(update, base, top_k)
    return LayerIntruders(
        name=update.name,
        shape=update.shape,
        baseline=random_baseline(*update.shape),
        cosines=tuple(top.cosines.abs().amax(dim=0).clamp(max=1.0).tolist()),
        values=tuple(top.values.tolist()),
        solver=top.solver,
    )


def random_baseline(rows: int, columns: int | None = None) -> float:
    """The largest |cos| of a random direction, about sqrt(2 ln k / rows) for k = min(rows, columns)."""
    vectors = rows if columns is None else min(rows, columns)
    return min(1.0, math.sqrt(2 * math.log(vectors) / rows)) if vectors > 1 else 1.0
