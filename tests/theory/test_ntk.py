"""Rank thresholds against brute force; the excess-risk bound against solved problems."""

import math

import numpy as np
import pytest

from tunewise.errors import SpecError
from tunewise.theory import (
    excess_risk,
    nuclear_penalty,
    rank_for_existence,
    rank_for_generic_features,
    rank_without_spurious_minima,
)


def test_both_thresholds_are_the_first_and_last_rank_by_counting():
    """K N = 1 .. 3000, and numbers around large triangular ones, where a float's square root would slip."""
    for total in range(1, 3001):
        counted = max(r for r in range(1, 80) if r * (r + 1) // 2 <= total)
        assert int(rank_for_existence(1, total)) == counted
        assert int(rank_without_spurious_minima(1, total)) == counted + 1
    for r in (10**6, 10**9, 10**12 + 39):
        assert int(rank_for_existence(1, r * (r + 1) // 2)) == r
        assert int(rank_for_existence(1, r * (r + 1) // 2 - 1)) == r - 1


def test_only_the_product_of_outputs_and_samples_counts():
    assert rank_for_existence(3, 20) == rank_for_existence(60, 1)
    assert rank_without_spurious_minima(3, 20) == rank_without_spurious_minima(1, 60)


@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (1, 9), (30, 12)])
def test_the_weaker_demand_is_the_first_rank_by_counting(shape):
    n, m = shape
    for total in range(1, 400):
        enough = [r for r in range(1, min(shape) + 1) if r * (m + n) - r**2 > 1.35 * total]
        assert int(rank_for_generic_features(shape, 1, total)) == (enough[0] if enough else min(shape))


def test_few_shot_roberta_is_11_or_12_against_1():
    """K N of 64 .. 77 for two classes of 32 to 38 shots; RoBERTa-large's width."""
    assert {int(rank_without_spurious_minima(2, n)) for n in (32, 38)} == {11, 12}
    assert int(rank_for_generic_features((1024, 1024), 2, 38)) == 1


def test_binary_cross_entropy_has_no_threshold():
    assert int(rank_for_generic_features((64, 64), 1, 10**9, loss="binary_cross_entropy")) == 1
    with pytest.raises(SpecError, match="did you mean 'squared'"):
        rank_for_generic_features((64, 64), 1, 10, loss="sqared")


def test_the_excess_risk_is_six_tau_times_the_norm():
    k, n, g, r, eta, norm = 3, 500, 0.7, 2.0, 0.01, 4.0
    tau = math.sqrt(2) * math.sqrt(k) * g * r / math.sqrt(n) * (2 + math.sqrt(math.log(1 / eta)))
    arguments = {"outputs": k, "samples": n, "feature_bound": r, "loss_lipschitz": g, "delta": eta}
    assert float(excess_risk(norm, **arguments)) == pytest.approx(6 * tau * norm, rel=1e-14)
    assert float(nuclear_penalty(**arguments)) == pytest.approx(2 * tau, rel=1e-14)


def test_matrices_of_signed_features_are_as_small_as_the_proof_says():
    """||mean of e_ik G_ik||_2 averages to at most sqrt(K) R / sqrt(N); 200 draws."""
    rng, k, n, r = np.random.default_rng(0), 3, 40, 2.0
    features = rng.normal(size=(n, k, 4, 5))
    features *= r / np.linalg.norm(features, axis=(2, 3), keepdims=True)
    signs = rng.choice([-1.0, 1.0], size=(200, n, k))
    norms = np.linalg.norm(np.einsum("tik,ikab->tab", signs, features) / n, 2, axis=(1, 2))
    assert norms.mean() <= math.sqrt(k) * r / math.sqrt(n)


@pytest.mark.parametrize("seed", range(5))
def test_the_penalised_minimiser_risks_no_more_than_said(seed):
    """Logistic loss on 2 x 2 features of norm 1, N = 40,000, by proximal gradient."""
    rng, n, size, norm = np.random.default_rng(seed), 40_000, 2, 3.0
    best = np.outer(*rng.normal(size=(2, size)))
    best *= norm / np.linalg.norm(best, "nuc")

    def draw():
        x = rng.normal(size=(n, size, size))
        x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
        margin = np.einsum("iab,ab->i", x, best)
        return x, np.where(rng.random(n) < 1 / (1 + np.exp(-margin)), 1.0, -1.0)

    def risk(x, d):
        """The mean over the labels' law, so that `best` is its minimiser."""
        probability, margin = (np.einsum("iab,ab->i", x, w) for w in (best, d))
        probability = 1 / (1 + np.exp(-probability))
        return np.mean(probability * np.logaddexp(0, -margin) + (1 - probability) * np.logaddexp(0, margin))

    x, y = draw()
    penalty, d = float(nuclear_penalty(1, n, 1.0)), np.zeros((size, size))
    for _ in range(150):
        slope = -y / (1 + np.exp(y * np.einsum("iab,ab->i", x, d)))
        step = 4.0  # one over the curvature
        u, s, vt = np.linalg.svd(d - step * np.einsum("i,iab->ab", slope, x) / n)
        d = u @ np.diag(np.maximum(s - step * penalty, 0)) @ vt
    assert np.linalg.norm(d) > 0
    fresh, _ = draw()
    excess, bound = risk(fresh, d) - risk(fresh, best), float(excess_risk(norm, 1, n, 1.0))
    assert 0 <= excess <= bound
