"""The spectrum of what was learnt: singular values of dW, how many of them count, and where they lie next to W0's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra, BaseSpectrum
from tunewise.measures.finished import FinishedRun
from tunewise.measures.updates.folder import updates_of_run
from tunewise.measures.updates.layer import LayerUpdate

KEPT = 64
"""Singular values written down for a layer; the figures over them are of all."""


@dataclass(frozen=True)
class LayerSpectrum:
    """dW of one layer. Norms in W0's units; a dW of zero has effective and stable rank 0 and no energies."""

    name: str
    shape: tuple[int, int]
    values: tuple[float, ...]
    """Singular values of dW from the largest down, without those that are zero to rounding."""
    effective_rank: float
    """exp of the entropy of s_i / sum s (Roy and Vetterli, EUSIPCO 2007)."""
    stable_rank: float
    """||dW||_F^2 / ||dW||_2^2."""
    relative_norm: float | None
    """||dW||_F / ||W0||_F; None where W0 is zero, here and below."""
    relative_spectral_norm: float | None
    """||dW||_2 / ||W0||_2."""
    base_norm: float
    """||W0||_F."""
    top: int
    """k of the energies: the rank of dW unless another was asked for."""
    energy_left: float | None
    """||U_k^T dW||_F^2 / ||dW||_F^2, U_k the top k left singular vectors of W0. A random dW has k / n."""
    energy_right: float | None
    """||dW V_k||_F^2 / ||dW||_F^2. A random dW has k / m."""

    @property
    def frobenius_norm(self) -> float:
        return math.sqrt(sum(v * v for v in self.values))


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


@torch.no_grad()
def layer_spectrum(update: LayerUpdate, base: BaseSpectrum, top: int | None = None) -> LayerSpectrum:
    """The figures of one layer. With factors nothing of dW's size is formed or decomposed."""
    values = update.singular_values()
    device = values.device
    largest = float(values[0]) if len(values) else 0.0
    values = values[values > max(update.shape) * torch.finfo(torch.float64).eps * largest]
    top = min(min(update.shape), top or update.rank_bound)
    energies = _energies(update, base, top) if largest > 0 else (None, None)
    base_values = base.values.double().to(device)
    w0, w0_spectral = float(base_values.norm()), float(base_values[0])
    return LayerSpectrum(
        update.name,
        update.shape,
        tuple(values.tolist()),
        effective_rank(values),
        stable_rank(values),
        float(values.norm()) / w0 if w0 > 0 else None,
        largest / w0_spectral if w0_spectral > 0 else None,
        w0,
        top,
        *energies,
    )


def _energies(update: LayerUpdate, base: BaseSpectrum, top: int) -> tuple[float | None, float | None]:
    u = base.u[:, :top].double()
    known = int((base.values > 1e-10 * base.values[0]).sum()) if float(base.values[0]) > 0 else 0
    if top > known:  # W0 has no top space of that size
        return None, None
    v = base.right(update.base, top)
    if update.left is not None and update.right is not None:
        x, s, yh = update.top_singular_vectors(update.rank_bound)
        total = s.square().sum()
        return float((u.T @ x * s).square().sum() / total), float((s[:, None] * (yh @ v)).square().sum() / total)
    delta = update.delta()
    total = delta.square().sum()
    return float((u.T @ delta).square().sum() / total), float((delta @ v).square().sum() / total)


def all_spectra(
    updates: Mapping[str, LayerUpdate],
    spectra: BaseSpectra,
    top: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[LayerSpectrum]:
    """Layer by layer, one in memory at a time; `check` is called before each."""
    found = []
    for update in updates.values():
        check()
        found.append(layer_spectrum(update, spectra.of(update.base), top))
    return found


def totals(layers: list[LayerSpectrum]) -> dict[str, float]:
    """Over all layers: means of the ranks, and the norm of all dW together relative to all W0."""
    count = max(len(layers), 1)
    size, base = (math.sqrt(sum(n * n for n in norms)) for norms in _norms(layers))
    return {
        "effective_rank": sum(layer.effective_rank for layer in layers) / count,
        "stable_rank": sum(layer.stable_rank for layer in layers) / count,
        "relative_norm": size / base if base > 0 else 0.0,
    }


def _norms(layers: list[LayerSpectrum]) -> tuple[list[float], list[float]]:
    return [layer.frobenius_norm for layer in layers], [layer.base_norm for layer in layers]


def spectrum(run: FinishedRun, check: Callable[[], None]) -> dict[str, Any]:
    """Every adapted layer, energies in the top space of the run's rank."""
    updates = updates_of_run(run)
    found = all_spectra(updates, BaseSpectra(run.cache / FOLDER), run.spec.method.rank, check)
    return summary(found)


def summary(layers: list[LayerSpectrum]) -> dict[str, Any]:
    """All layers as plain data."""
    return {**totals(layers), "layers": {layer.name: describe(layer) for layer in layers}}


def describe(layer: LayerSpectrum) -> dict[str, Any]:
    """One layer as plain data."""
    return {
        "shape": list(layer.shape),
        "rank": len(layer.values),
        "values": list(layer.values[:KEPT]),
        "effective_rank": layer.effective_rank,
        "stable_rank": layer.stable_rank,
        "relative_norm": layer.relative_norm,
        "relative_spectral_norm": layer.relative_spectral_norm,
        "top": layer.top,
        "energy_left": layer.energy_left,
        "energy_right": layer.energy_right,
    }
