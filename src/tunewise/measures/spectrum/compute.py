"""The spectrum of what was learnt: singular values of dW, how many of them count, and where they lie next to W0's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra, BaseSpectrum
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.measures.updates.folder import updates_of_run
from tunewise.measures.updates.layer import LayerUpdate

KEPT = 64
"""Singular values that are stored for a layer; the numbers derived from them use all."""


class LayerSpectrum(Values):
    """dW of one layer. Norms are in W0's units; a dW of zero has effective and stable rank 0 and no energies."""

    name: str
    shape: tuple[int, int]
    rank: int
    """Singular values that are not zero to rounding."""
    values: tuple[float, ...]
    """The largest singular values of dW, in descending order."""
    effective_rank: float
    """exp of the entropy of s_i / sum s (Roy and Vetterli, EUSIPCO 2007)."""
    stable_rank: float
    """||dW||_F^2 / ||dW||_2^2."""
    norm: float
    """||dW||_F."""
    base_norm: float
    """||W0||_F."""
    relative_norm: float | None
    """||dW||_F / ||W0||_F; None where W0 is zero, here and below."""
    relative_spectral_norm: float | None
    """||dW||_2 / ||W0||_2."""
    top: int
    """k of the energies: the rank of dW unless another was asked for."""
    energy_left: float | None
    """||U_k^T dW||_F^2 / ||dW||_F^2, U_k the top k left singular vectors of W0. A random dW has k / n."""
    energy_right: float | None
    """||dW V_k||_F^2 / ||dW||_F^2. A random dW has k / m."""


class SpectrumResult(MeasureResult):
    effective_rank: float
    """Mean over layers, as the stable rank."""
    stable_rank: float
    relative_norm: float
    """The norm of all dW together over that of all W0."""
    layers: dict[str, LayerSpectrum]


def compute(run: FinishedRun, settings: MeasureSettings, check: Check) -> SpectrumResult:
    """Every adapted layer, energies in the top space of the run's rank."""
    return spectra_of(updates_of_run(run), BaseSpectra(run.cache / FOLDER), run.spec.method.rank, check)


def spectra_of(
    updates: Mapping[str, LayerUpdate], spectra: BaseSpectra, top: int | None = None, check: Check = no_check
) -> SpectrumResult:
    """Layer by layer, one in memory at a time."""
    layers = {}
    for name, update in updates.items():
        check()
        layers[name] = layer_spectrum(update, spectra.of(update.base), top)
    count = max(len(layers), 1)
    base = _norm(layer.base_norm for layer in layers.values())
    return SpectrumResult(
        effective_rank=sum(layer.effective_rank for layer in layers.values()) / count,
        stable_rank=sum(layer.stable_rank for layer in layers.values()) / count,
        relative_norm=_norm(layer.norm for layer in layers.values()) / base if base > 0 else 0.0,
        layers=layers,
    )


@torch.no_grad()
def layer_spectrum(update: LayerUpdate, base: BaseSpectrum, top: int | None = None) -> LayerSpectrum:
    """With factors nothing of dW's size is formed or decomposed."""
    values = update.singular_values()
    largest = float(values[0]) if len(values) else 0.0
    values = values[values > max(update.shape) * torch.finfo(torch.float64).eps * largest]
    top = min(*update.shape, top or update.rank_bound)
    energies = _energies(update, base, top) if largest > 0 else (None, None)
    base_values = base.values.double().to(values.device)
    w0, w0_spectral = float(base_values.norm()), float(base_values[0])
    listed = tuple(values.tolist())
    return LayerSpectrum(
        name=update.name,
        shape=update.shape,
        rank=len(listed),
        values=listed[:KEPT],
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        norm=_norm(listed),
        base_norm=w0,
        relative_norm=float(values.norm()) / w0 if w0 > 0 else None,
        relative_spectral_norm=largest / w0_spectral if w0_spectral > 0 else None,
        top=top,
        energy_left=energies[0],
        energy_right=energies[1],
    )


def effective_rank(values: Tensor) -> float:
    """exp(-sum p_i ln p_i), p_i = s_i / sum s; 0 where all are zero."""
    total = float(values.sum())
    if total == 0:
        return 0.0
    p = values[values > 0] / total
    return float(torch.exp(-(p * p.log()).sum()))


def stable_rank(values: Tensor) -> float:
    """sum s_i^2 / s_1^2; 0 where all are zero."""
    largest = float(values.max()) if len(values) else 0.0
    return float((values / largest).square().sum()) if largest > 0 else 0.0


def _energies(update: LayerUpdate, base: BaseSpectrum, top: int) -> tuple[float | None, float | None]:
    u = base.u[:, :top].double()
    base_rank = int((base.values > 1e-10 * base.values[0]).sum()) if float(base.values[0]) > 0 else 0
    if top > base_rank:  # W0 has no top space of that size
        return None, None
    v = base.right(update.base, top)
    if update.left is not None and update.right is not None:
        x, s, yh = update.top_singular_vectors(update.rank_bound)
        total = s.square().sum()
        return float((u.T @ x * s).square().sum() / total), float((s[:, None] * (yh @ v)).square().sum() / total)
    delta = update.delta()
    total = delta.square().sum()
    return float((u.T @ delta).square().sum() / total), float((delta @ v).square().sum() / total)


def _norm(numbers: Iterable[float]) -> float:
    return math.sqrt(sum(n * n for n in numbers))
