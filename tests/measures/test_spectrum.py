"""Spectra from factors equal those of the dense dW, and have known values where those are known."""

from __future__ import annotations

import math

import pytest
import torch

from measures.planted import layer, orthonormal, random_update
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures._linalg.svd import values_of_dense
from tunewise.measures.spectrum.compute import effective_rank, layer_spectrum, spectra_of, stable_rank
from tunewise.measures.updates.layer import LayerUpdate

NO_CACHE = BaseSpectra(None)


def spectrum_of(update: LayerUpdate, top: int | None = None):
    return layer_spectrum(update, NO_CACHE.of(update.base), top)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 40])
def test_equals_the_dense_computation(shape: tuple[int, int], rank: int) -> None:
    update = random_update(*shape, rank, seed=3)
    found = spectrum_of(update, top=4)
    w0, dw = update.base.double(), update.delta()
    values = torch.linalg.svdvals(dw)[: min(rank, *shape)]
    assert found.values == pytest.approx(values.tolist(), abs=1e-10)
    p = values / values.sum()
    assert found.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p.tolist())), abs=1e-10)
    assert found.stable_rank == pytest.approx(float(dw.square().sum() / values[0] ** 2), abs=1e-10)
    assert found.relative_norm == pytest.approx(float(dw.norm() / w0.norm()), abs=1e-10)
    assert found.relative_spectral_norm == pytest.approx(
        float(values[0] / torch.linalg.matrix_norm(w0, ord=2)), abs=1e-10
    )
    u, _, vh = torch.linalg.svd(w0)
    assert found.energy_left == pytest.approx(float((u[:, :4].T @ dw).norm() ** 2 / dw.norm() ** 2), abs=1e-10)
    assert found.energy_right == pytest.approx(float((dw @ vh[:4].T).norm() ** 2 / dw.norm() ** 2), abs=1e-10)


def test_a_dense_update_gives_the_same_figures() -> None:
    low = random_update(25, 18, 3)
    dense = LayerUpdate.of_dense("layer", layer(low.base), low.delta)
    one, two = spectrum_of(low, top=3), spectrum_of(dense, top=3)
    assert one.rank == two.rank == len(one.values) == len(two.values) == 3
    for name in ("effective_rank", "stable_rank", "relative_norm", "energy_left", "energy_right"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-10)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-5, 1e-9, 0.0])
@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
def test_values_of_a_dense_matrix_are_right_to_the_smallest(smallest: float, shape: tuple[int, int]) -> None:
    expected = torch.linspace(5, smallest, 18, dtype=torch.float64)
    matrix = orthonormal(shape[0], 18, 0) * expected @ orthonormal(shape[1], 18, 1).T
    found = values_of_dense(matrix)
    assert ((found - expected).abs() <= 1e-7 * expected + 1e-13).all()


def test_ranks_of_flat_and_single_spectra() -> None:
    flat, one = torch.full((7,), 2.0, dtype=torch.float64), torch.tensor([3.0, 0.0, 0.0])
    assert effective_rank(flat) == pytest.approx(7) and stable_rank(flat) == pytest.approx(7)
    assert effective_rank(one) == pytest.approx(1) and stable_rank(one) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0 and stable_rank(torch.zeros(3)) == 0


def test_an_update_along_w0s_own_top_has_all_its_energy_there() -> None:
    u, v = orthonormal(20, 15, 0), orthonormal(15, 15, 1)
    base = layer(u * torch.linspace(5, 1, 15, dtype=torch.float64) @ v.T)
    inside = LayerUpdate.of_factors("layer", base, u[:, :2], v[:, :2].T)
    outside = LayerUpdate.of_factors("layer", base, u[:, 5:7], v[:, 5:7].T)
    assert spectrum_of(inside).energy_left == pytest.approx(1, abs=1e-12)
    assert spectrum_of(inside).energy_right == pytest.approx(1, abs=1e-12)
    assert spectrum_of(outside).energy_left == pytest.approx(0, abs=1e-12)
    assert spectrum_of(outside).energy_right == pytest.approx(0, abs=1e-12)


def test_nothing_learnt_and_nothing_there_have_no_figures_that_are_not_finite() -> None:
    still = spectrum_of(random_update(12, 10, 2, size=0.0))
    assert (still.values, still.effective_rank, still.relative_norm, still.energy_left) == ((), 0.0, 0.0, None)
    empty = LayerUpdate.of_factors("layer", layer(torch.zeros(6, 5)), torch.ones(6, 1), torch.ones(1, 5))
    found = spectrum_of(empty)
    assert found.relative_norm is None and found.relative_spectral_norm is None and found.energy_left is None
    totals = spectra_of({"layer": empty}, NO_CACHE)
    assert (totals.effective_rank, totals.stable_rank, totals.relative_norm) == (1.0, 1.0, 0.0)


def test_totals_are_of_all_layers_together() -> None:
    one, two = random_update(12, 10, 2, seed=1), random_update(30, 20, 4, seed=2)
    all_dw = math.hypot(float(one.delta().norm()), float(two.delta().norm()))
    all_w0 = math.hypot(float(one.base.norm()), float(two.base.norm()))
    layers = [spectrum_of(one), spectrum_of(two)]
    totals = spectra_of({"one": one, "two": two}, NO_CACHE)
    assert totals.relative_norm == pytest.approx(all_dw / all_w0, abs=1e-12)
    assert totals.stable_rank == pytest.approx((layers[0].stable_rank + layers[1].stable_rank) / 2)
