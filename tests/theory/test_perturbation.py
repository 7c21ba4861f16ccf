"""Theorem 1: against the literal sum, against 60-digit arithmetic, and against networks."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.theory import information_bound, literal_perturbation, perturbation

few = settings(max_examples=40, deadline=None, derandomize=True)
norm = st.floats(0, 100, allow_nan=False, allow_subnormal=False)
seeds = st.integers(0, 2**32 - 1)

# name: (function, Lipschitz constant, value at 0)
ACTIVATIONS = {
    "relu": (lambda z: np.maximum(z, 0), 1.0, 0.0),
    "sigmoid": (lambda z: (1 + np.tanh(z / 2)) / 2, 0.25, 0.5),
    "softplus": (lambda z: np.logaddexp(z, 0), 1.0, math.log(2)),
    "tanh": (np.tanh, 1.0, 0.0),
}


def random_norms(rng, layers, scale=1.0, spread=1.0):
    """a, b, lam, s: log-normal, so that sizes differ."""
    a, b, lam, s = np.exp(spread * rng.normal(size=(4, layers))) * scale
    return {
        "base_norms": a,
        "update_norms": b / 10,
        "activation_lipschitz": lam / scale,
        "activation_offsets": s,
    }


def closed_form(base, other, lam, s, c, loss_lipschitz):
    """2 Ll [C M_0 (S_0 - T_0) + sum_l s_l M_l (S_l - T_l)]; M, S, T products over the layers after l."""
    lists = [[mpmath.mpf(float(x)) for x in values] for values in (base, other, lam, s)]
    starts = [mpmath.mpf(c), *lists[3][:-1]]
    total, products = mpmath.mpf(0), [mpmath.mpf(1)] * 3
    for w, v, lam_l, start in zip(*(reversed(values) for values in (*lists[:3], starts))):
        products = [products[0] * lam_l, products[1] * (w + v), products[2] * w]
        total += start * products[0] * (products[1] - products[2])
    return 2 * mpmath.mpf(loss_lipschitz) * total


@pytest.mark.parametrize("layers", range(1, 11))
@pytest.mark.parametrize("seed", range(5))
def test_it_equals_the_mended_sum_of_two_to_the_l_terms(layers, seed):
    """Relative tolerance 1e-12."""
    arguments = random_norms(np.random.default_rng(seed), layers) | {
        "input_bound": 1.7,
        "loss_lipschitz": 0.3,
    }
    for fast, literal in zip(perturbation(**arguments), literal_perturbation(**arguments)):
        assert float(fast) == pytest.approx(float(literal), rel=1e-12)
        assert fast.log_value == pytest.approx(math.log(literal), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_400_layers_agree_with_60_digit_arithmetic(scale, seed):
    """Value and logarithm to 1e-12, also where the value is beyond the floats; no logarithm is lost."""
    rng = np.random.default_rng(seed)
    a, b, lam, s = np.exp(0.3 * rng.normal(size=(4, 400))) * np.array([[scale], [scale / 1000], [1.0], [1.0]])
    with mpmath.workdps(60):
        for bound, base, other in zip(perturbation(a, b, 2.5, 0.7, lam, s), (a, b), (b, a)):
            exact = closed_form(base, other, lam, s, 2.5, 0.7)
            assert bound.log_value == pytest.approx(float(mpmath.log(exact)), rel=1e-12)
            assert float(bound) == pytest.approx(float(exact), rel=1e-12)
            assert math.isinf(float(bound)) == (exact > np.finfo(float).max)


def test_a_tiny_update_of_400_layers_loses_no_digit():
    """The difference of two nearly equal products: a relative 1e-12, at updates of 1e-200."""
    a, b = np.full(400, 1.01), np.full(400, 1e-200)
    with mpmath.workdps(500):
        exact = float(closed_form(a, b, np.ones(400), np.zeros(400), 1.0, 1.0))
    assert float(perturbation(a, b, 1.0).phi_dw) == pytest.approx(exact, rel=1e-12)


def test_two_layers_are_the_formula_by_hand():
    a, b, lam, s, c = (3.0, 5.0), (0.7, 0.2), (0.9, 0.25), (1.1, 4.0), 2.0
    phi_dw, phi_w0 = perturbation(a, b, c, 1.0, lam, s)
    linear = c * lam[0] * lam[1]
    assert float(phi_dw) / 2 == pytest.approx(
        linear * (a[1] * b[0] + b[1] * a[0] + b[1] * b[0]) + lam[1] * b[1] * s[0], rel=1e-14
    )
    assert float(phi_w0) / 2 == pytest.approx(
        linear * (a[1] * b[0] + b[1] * a[0] + a[1] * a[0]) + lam[1] * a[1] * s[0], rel=1e-14
    )


def test_linear_layers_are_corollary_1():
    """2 Ll C (prod (a + b) - prod base)."""
    a, b = np.array([2.0, 3.0, 0.5]), np.array([0.1, 0.4, 0.2])
    phi_dw, phi_w0 = perturbation(a, b, 1.5, 2.0)
    assert float(phi_dw) == pytest.approx(4 * 1.5 * (np.prod(a + b) - np.prod(a)), rel=1e-14)
    assert float(phi_w0) == pytest.approx(4 * 1.5 * (np.prod(a + b) - np.prod(b)), rel=1e-14)


def random_networks(rng, depth, count):
    """`count` networks of one shape, each with an input: x, base weights, updates. Half of the updates lie
    along the base's top singular directions, where the bound is nearest."""
    widths = rng.integers(1, 6, size=depth + 1)
    x = rng.normal(size=(count, widths[0])) * np.exp(rng.normal(size=(count, 1)))
    base, update = [], []
    for n, m in zip(widths[1:], widths):
        w = rng.normal(size=(count, n, m)) * np.exp(rng.normal(size=(count, 1, 1)))
        dw = rng.normal(size=(count, n, m)) * np.exp(2 * rng.normal(size=(count, 1, 1)) - 1)
        u, _, vt = np.linalg.svd(w)
        aligned = u[:, :, :1] @ vt[:, :1, :] * np.exp(rng.normal(size=(count, 1, 1)) - 1)
        base.append(w)
        update.append(np.where(rng.random((count, 1, 1)) < 0.5, dw, aligned))
    return x, base, update


def outputs(weights, x, activation):
    h = x
    for w in weights:
        h = ACTIVATIONS[activation][0](np.einsum("tij,tj->ti", w, h))
    return h


def spectral(weights):
    """One row a network, one column a layer."""
    return np.stack([np.linalg.norm(w, 2, axis=(1, 2)) for w in weights], axis=1)


@few
@given(seed=seeds, activation=st.sampled_from(sorted(ACTIVATIONS)), depth=st.integers(1, 6))
def test_never_below_the_true_difference_of_outputs_or_losses(seed, activation, depth):
    """100 networks an example, fp64: outputs within Phi / 2, and so a 1-Lipschitz loss; plain and merged."""
    x, base, update = random_networks(np.random.default_rng(seed), depth, count=100)
    merged = [w + dw for w, dw in zip(base, update)]
    f_merged, f_base, f_update = (outputs(weights, x, activation) for weights in (merged, base, update))
    _, lipschitz, at_zero = ACTIVATIONS[activation]
    offsets = [abs(at_zero) * math.sqrt(w.shape[1]) for w in base]
    target = f_base[::-1]
    for i, norms in enumerate(zip(spectral(base), spectral(update), spectral(merged))):
        a, b, c = norms
        radius = np.linalg.norm(x[i])
        plain = perturbation(a, b, radius, 1.0, lipschitz, offsets)
        sharp = perturbation(a, b, radius, 1.0, lipschitz, offsets, merged_norms=c)
        for phi, sharper, other in zip(plain, sharp, (f_base, f_update)):
            distance = np.linalg.norm(f_merged[i] - other[i])
            loss_change = abs(np.linalg.norm(f_merged[i] - target[i]) - np.linalg.norm(other[i] - target[i]))
            rounding = 1e-13 * (1 + np.linalg.norm(f_merged[i]) + np.linalg.norm(other[i]))
            assert max(distance, loss_change) <= float(sharper) / 2 + rounding
            assert float(sharper) <= float(phi)


@few
@given(seed=seeds, activation=st.sampled_from(sorted(ACTIVATIONS)))
def test_the_gap_moves_by_at_most_phi(seed, activation):
    """The theorem itself: a law on 40 points, a sample of 5, a 1-Lipschitz loss, whole gaps."""
    rng = np.random.default_rng(seed)
    _, base, update = random_networks(rng, depth=3, count=1)
    points = rng.normal(size=(40, base[0].shape[2]))
    targets = rng.normal(size=(40, base[-1].shape[1]))
    sample = rng.integers(0, 40, size=5)

    def gap(weights):
        f = outputs([np.repeat(w, 40, axis=0) for w in weights], points, activation)
        losses = np.linalg.norm(f - targets, axis=1)
        return losses.mean() - losses[sample].mean()

    _, lipschitz, at_zero = ACTIVATIONS[activation]
    offsets = [at_zero * math.sqrt(w.shape[1]) for w in base]
    radius = np.linalg.norm(points, axis=1).max()
    phi_dw, phi_w0 = perturbation(spectral(base)[0], spectral(update)[0], radius, 1.0, lipschitz, offsets)
    merged = gap([w + dw for w, dw in zip(base, update)])
    assert merged <= min(gap(base) + float(phi_dw), gap(update) + float(phi_w0)) + 1e-12
    assert abs(merged - gap(base)) <= float(phi_dw) + 1e-12


@few
@given(a=st.lists(st.floats(0.01, 10), min_size=1, max_size=8), ratio=st.floats(0, 2))
def test_it_is_attained_by_aligned_nonnegative_relu_networks(a, ratio):
    """Width 1, W0 = a, dW = b, x = C: outputs are Phi / 2 apart, to 1e-12; no constant can be improved."""
    b = [ratio * w for w in a]
    phi_dw, phi_w0 = perturbation(a, b, input_bound=1.3)
    f_merged, f_base, f_update = (1.3 * np.prod(w) for w in (np.add(a, b), a, b))
    assert float(phi_dw) / 2 == pytest.approx(f_merged - f_base, rel=1e-12, abs=1e-12 * f_merged)
    assert float(phi_w0) / 2 == pytest.approx(f_merged - f_update, rel=1e-12, abs=1e-12 * f_merged)


@few
@given(norms=st.lists(st.tuples(norm, norm, norm), min_size=1, max_size=12), c=norm)
def test_a_zero_update_gives_exactly_zero(norms, c):
    a, lam, s = zip(*norms)
    assert float(perturbation(a, 0.0, c, 1.0, lam, s).phi_dw) == 0.0
    assert perturbation(a, 0.0, c, 1.0, lam, s).phi_dw.log_value == -math.inf
    assert float(perturbation(0.0, a, c, 1.0, lam, s).phi_w0) == 0.0


@few
@given(
    norms=st.lists(st.tuples(norm, norm, norm, norm), min_size=1, max_size=8),
    c=norm,
    more=norm,
    data=st.data(),
)
def test_it_is_monotone_in_every_norm(norms, c, more, data):
    """Exactly: no tolerance."""
    columns = [list(column) for column in zip(*norms)]
    before = perturbation(columns[0], columns[1], c, 1.0, columns[2], columns[3])
    quantity = data.draw(st.integers(0, 5))
    factors = [c, 1.0]
    if quantity < 4:
        columns[quantity][data.draw(st.integers(0, len(norms) - 1))] += more
    else:
        factors[quantity - 4] += more
    after = perturbation(columns[0], columns[1], *factors, columns[2], columns[3])
    assert float(after.phi_dw) >= float(before.phi_dw)
    assert float(after.phi_w0) >= float(before.phi_w0)


def test_a_number_stands_for_every_layer():
    spread = perturbation([2.0] * 5, [0.1] * 5, 1.0, 1.0, [0.5] * 5, [0.3] * 5)
    assert perturbation([2.0] * 5, 0.1, 1.0, 1.0, 0.5, 0.3) == spread
    assert perturbation(np.full(5, 2.0), np.float32(0.1).item(), 1.0, 1.0, 0.5, 0.3)[0].value == pytest.approx(
        spread.phi_dw.value, rel=1e-6
    )


def test_merged_norms_beyond_the_triangle_inequality_change_nothing():
    plain = perturbation([2.0, 3.0], 0.5, 1.0)
    assert perturbation([2.0, 3.0], 0.5, 1.0, merged_norms=100.0) == plain
    assert float(perturbation([2.0, 3.0], 0.5, 1.0, merged_norms=2.0).phi_dw) < float(plain.phi_dw)


def test_totals_are_sums():
    total = perturbation([2.0, 3.0], 0.5, 1.0).phi_w0 + information_bound(10, 1000)
    assert float(total) == pytest.approx(
        2 * (2.5 * 3.5 - 0.25) + math.sqrt(2 * 32 * 10 * math.log(2) / 1000), rel=1e-13
    )
    assert total.mark == "fixed"
