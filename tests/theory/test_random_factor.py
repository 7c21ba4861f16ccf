"""One run of LoRA with a random frozen factor: every step of the proof, then the whole."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy.stats import binom

from tunewise.theory import random_factor_lower, random_factor_upper
from tunewise.theory.random_factor import factor_geometry

NETWORK = {
    "base_norms": [2.0, 1.0, 3.0],
    "layers": [(6, 5), (4, 6), (2, 4)],
    "rank": 3,
    "alpha": 6.0,
    "factor_std": 0.2,
    "update_radius": 0.7,
    "input_bound": 1.5,
    "loss_lipschitz": 0.8,
    "activation_lipschitz": [1.0, 0.25, 1.0],
    "activation_offsets": [0.3, 1.0, 0.0],
}


def lipschitz_by_hand(network, factor_delta):
    """Lam as the docstring has it: explicit sum over layers and product over the layers after each."""
    depth, g = len(network["layers"]), network["alpha"] / network["rank"]
    t = mpmath.sqrt(2 * mpmath.log(depth / mpmath.mpf(factor_delta)))
    lam, s = network["activation_lipschitz"], network["activation_offsets"]
    al = [network["factor_std"] * (mpmath.sqrt(network["rank"]) + mpmath.sqrt(m) + t) for _, m in network["layers"]]
    w = [norm + g * network["update_radius"] * al_l for norm, al_l in zip(network["base_norms"], al)]
    h = [mpmath.mpf(network["input_bound"])]
    for k in range(depth):
        h.append(lam[k] * w[k] * h[k] + s[k])
    slopes = [
        g * al[k] * lam[k] * h[k] * mpmath.fprod(lam[j] * w[j] for j in range(k + 1, depth)) for k in range(depth)
    ]
    return network["loss_lipschitz"] * mpmath.sqrt(sum(x**2 for x in slopes))


@pytest.mark.parametrize("depth", [1, 3, 400])
def test_the_bound_is_the_formula_in_60_digits(depth):
    """Relative tolerance 1e-12, also where Lam is beyond the floats."""
    repeat = {"base_norms", "layers", "activation_lipschitz", "activation_offsets"}
    network = {k: (v * depth)[:depth] if k in repeat else v for k, v in NETWORK.items()}
    if depth == 400:
        network |= {"base_norms": [30.0] * 400, "layers": [(6, 6)] * 400}
    n, m_range, d, da = 10_000, 2.0, 0.01, 0.02
    with mpmath.workdps(60):
        lam = lipschitz_by_hand(network, da)
        p = network["rank"] * sum(rows for rows, _ in network["layers"])
        radius = network["update_radius"] * mpmath.sqrt(depth)
        net = p * mpmath.log(1 + 2 * radius * lam * mpmath.sqrt(n))
        exact = 2 / mpmath.sqrt(n) + m_range * mpmath.sqrt((net + mpmath.log(2 / mpmath.mpf(d))) / (2 * n))
        geometry = factor_geometry(**network, factor_delta=da)
        assert geometry.lipschitz.log_value == pytest.approx(float(mpmath.log(lam)), rel=1e-12)
        assert geometry.parameters == p
        bound = random_factor_upper(**network, samples=n, loss_range=m_range, delta=d, factor_delta=da)
        assert float(bound) == pytest.approx(float(exact), rel=1e-12)
    assert bound.mark == "derived"


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (20, 20)])
def test_frozen_factors_exceed_their_usual_norm_as_rarely_as_said(shape):
    """2000 draws at dA = 0.1; the bound is not tight, so no tolerance is needed."""
    r, m = shape
    draws = np.random.default_rng(0).normal(size=(2000, r, m))
    usual = math.sqrt(r) + math.sqrt(m) + math.sqrt(2 * math.log(1 / 0.1))
    assert (np.linalg.norm(draws, 2, axis=(1, 2)) > usual).mean() <= 0.1


def test_the_loss_is_lipschitz_in_the_factors_with_the_constant():
    """500 pairs B, B' in reach, near and far, A at its usual norm: |loss - loss'| <= Lam ||B - B'||."""
    rng = np.random.default_rng(1)
    geometry = factor_geometry(**NETWORK)
    lam, g = float(geometry.lipschitz), NETWORK["alpha"] / NETWORK["rank"]
    tail = math.sqrt(2 * math.log(3 / 0.05))
    functions = [lambda z: np.maximum(z, 0), lambda z: 1 / (1 + np.exp(-z)), np.tanh]
    offsets = [0.0, 0.5 * math.sqrt(4), 0.0]
    assert offsets[1] == NETWORK["activation_offsets"][1]
    worst = 0.0
    for _ in range(500):
        pair, squares = [[], []], 0.0
        for (n, m), norm in zip(NETWORK["layers"], NETWORK["base_norms"]):
            w, a = rng.normal(size=(n, m)), rng.normal(size=(3, m))
            w *= norm / np.linalg.norm(w, 2)
            a *= NETWORK["factor_std"] * (math.sqrt(3) + math.sqrt(m) + tail) / np.linalg.norm(a, 2)
            b = rng.normal(size=(n, 3))
            b *= NETWORK["update_radius"] * rng.random() / np.linalg.norm(b)
            other = b + rng.normal(size=(n, 3)) * rng.choice([1e-3, 0.1])
            other *= min(1, NETWORK["update_radius"] / np.linalg.norm(other))
            squares += np.sum((b - other) ** 2)
            pair[0].append(w + g * b @ a)
            pair[1].append(w + g * other @ a)
        x = rng.normal(size=5)
        x *= NETWORK["input_bound"] / np.linalg.norm(x)
        target, losses = rng.normal(size=2), []
        for weights in pair:
            h = x
            for w, function in zip(weights, functions):
                h = function(w @ h)
            losses.append(NETWORK["loss_lipschitz"] * np.linalg.norm(h - target))
        worst = max(worst, abs(losses[0] - losses[1]) / (lam * math.sqrt(squares)))
    assert 0 < worst <= 1


def test_the_largest_gap_over_all_factors_stays_below():
    """Random labels, loss (1 - y b.Ax) / 2 over ||b|| <= 1: the largest gap is ||A mean(y x)|| / 2."""
    rng = np.random.default_rng(2)
    m, r, n, failures = 20, 4, 500, 0
    for _ in range(100):
        x = rng.normal(size=(n, m))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y = rng.choice([-1.0, 1.0], size=n)
        a = rng.normal(size=(r, m)) / m
        largest = np.linalg.norm(a @ (y @ x) / n) / 2
        bound = random_factor_upper(0.0, [(1, m)], r, float(r), 1 / m, 1.0, 1.0, n, loss_lipschitz=0.5)
        failures += largest > float(bound)
    assert failures == 0


def test_it_falls_as_one_over_the_root_of_samples_up_to_a_logarithm():
    """Quadrupled samples: at least halved but for the logarithm; the slope tends to -1/2 from above."""
    values = [float(random_factor_upper(**NETWORK, samples=4**k)) for k in range(4, 16)]
    ratios = [later / earlier for earlier, later in itertools.pairwise(values)]
    assert all(0.5 < ratio < 0.58 for ratio in ratios)
    assert ratios == sorted(ratios, reverse=True)


def test_it_grows_as_the_root_of_the_rank_up_to_a_logarithm():
    """alpha = 2 r, N = 10^8: each quadrupling of r doubles the bound, within 12 %."""
    values = [
        float(random_factor_upper(**NETWORK | {"rank": r, "alpha": 2.0 * r}, samples=10**8)) for r in (4, 16, 64, 256)
    ]
    for earlier, later in itertools.pairwise(values):
        assert 2.0 * 0.88 < later / earlier < 2.0 * 1.12


@pytest.mark.parametrize("name", ["base_norms", "update_radius", "input_bound", "factor_std", "activation_offsets"])
def test_it_is_monotone_in_every_size(name):
    larger = np.add(NETWORK[name], 0.5)
    assert float(random_factor_upper(**NETWORK | {name: larger}, samples=100)) > float(
        random_factor_upper(**NETWORK, samples=100)
    )


def test_without_room_to_move_only_one_hypothesis_is_left():
    bound = random_factor_upper(**NETWORK | {"update_radius": 0.0}, samples=400, delta=0.1)
    assert float(bound) == pytest.approx(2 / 20 + math.sqrt(math.log(20) / 800), rel=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 11, 100, 1001])
def test_the_lower_bound_is_below_the_exact_mean_of_the_larger_gap(n):
    """M / 2 E |mean of N signs| from binomial probabilities; equality at N = 2, so no constant is better."""
    heads = np.arange(n + 1)
    exact = 3.0 / 2 * np.sum(binom.pmf(heads, n, 0.5) * np.abs(2 * heads - n)) / n
    bound = float(random_factor_lower(n, loss_range=3.0))
    assert bound <= exact * (1 + 1e-12)
    assert exact <= bound * math.sqrt(2) * (1 + 1e-12)  # so the order 1 / sqrt(N) is right
    if n == 2:
        assert bound == pytest.approx(exact, rel=1e-12)


def test_the_upper_bound_is_above_the_lower_one():
    for n in (1, 10, 10**4, 10**8):
        assert float(random_factor_lower(n)) < float(random_factor_upper(**NETWORK, samples=n))
