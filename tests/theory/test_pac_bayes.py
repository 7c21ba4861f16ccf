"""PAC-Bayes and Hoeffding: the formulas in another writing, and exact probabilities."""

import math

import mpmath
import numpy as np
import pytest
from scipy.stats import binom

from tunewise.errors import SpecError
from tunewise.theory import hoeffding, pac_bayes, perturbation


def by_hand(a, q, c, v, n, epsilon, delta, c2):
    """Theorem 5 as it is written, with the sum of products over all layers but one."""
    layers = [mpmath.mpf(float(x)) + mpmath.mpf(float(y)) for x, y in zip(a, q)]
    sum_of_products = sum(mpmath.fprod(layers[:i] + layers[i + 1 :]) for i in range(len(layers)))
    complexity = 36 / mpmath.mpf(epsilon) ** 2 * c**2 * v * mpmath.log(4 * len(a) * v * c2)
    complexity *= sum_of_products**2 * sum(mpmath.mpf(float(y)) ** 2 for y in q)
    return epsilon + c2 * mpmath.sqrt((complexity + 3 * mpmath.log(n / mpmath.mpf(delta)) + 8) / n)


@pytest.mark.parametrize("layers", [1, 2, 12, 400])
def test_it_is_theorem_5_in_60_digits(layers):
    """Value and logarithm to 1e-12, also beyond the floats."""
    rng = np.random.default_rng(layers)
    a, q = rng.uniform(1, 20, layers), rng.uniform(0, 1, layers)
    bound = pac_bayes(a, q, 1.5, width=3072, samples=50_000, epsilon=0.2, delta=0.01, loss_range=2.0)
    with mpmath.workdps(60):
        exact = by_hand(a, q, mpmath.mpf("1.5"), 3072, 50_000, 0.2, 0.01, mpmath.mpf(2))
        assert bound.log_value == pytest.approx(float(mpmath.log(exact)), rel=1e-12)
        assert float(bound) == pytest.approx(float(exact), rel=1e-12)
    assert bound.vacuous


def test_theorem_6s_term_is_that_without_an_update():
    n, delta = 10_000, 0.05
    expected = 2.0 * math.sqrt((3 * math.log(n / delta) + 8) / n)
    bound = pac_bayes([5.0] * 400, 0.0, 3.0, width=100, samples=n, epsilon=0.0, delta=delta, loss_range=2.0)
    assert float(bound) == pytest.approx(expected, rel=1e-14)
    theorem_6 = bound + perturbation([9.0] * 400, 0.01, 3.0).phi_dw
    assert math.isinf(float(theorem_6))
    assert math.isfinite(theorem_6.log_value)
    assert theorem_6.mark == "fixed"


def test_hoeffding_is_tighter_for_a_fixed_network():
    for n in (10, 1000, 10**6):
        bound = pac_bayes([2.0], 0.0, 1.0, width=10, samples=n, epsilon=0.0, delta=0.05)
        assert float(hoeffding(n, delta=0.05)) < float(bound)


def test_norms_below_one_are_raised_to_one():
    rest = {"width": 10, "samples": 100}
    assert pac_bayes([0.2, 1.0], 0.1, 0.5, **rest) == pac_bayes([1.0, 1.0], 0.1, 1.0, **rest)


@pytest.mark.parametrize("which", ["base", "update", "input_bound", "width"])
def test_it_is_monotone_in_every_size_and_falls_with_samples(which):
    sizes = {"base": 2.0, "update": 0.5, "input_bound": 1.5, "width": 64}

    def value(base, update, input_bound, width, samples=1000):
        return float(pac_bayes([base, 3.0], [update, 0.1], input_bound, width, samples))

    assert value(**sizes | {which: 2 * sizes[which]}) > value(**sizes)
    assert value(**sizes, samples=4000) < value(**sizes)


@pytest.mark.parametrize("delta", [0.3, 0.05, 1e-4])
@pytest.mark.parametrize("n", [1, 7, 100, 2000])
@pytest.mark.parametrize("risk", [0.05, 0.5, 0.9])
def test_hoeffding_fails_with_at_most_its_probability(n, delta, risk):
    """Exact: a loss of 0 or 3 with mean 3 risk; the gap is risk - mean, its tail a binomial's."""
    bound = float(hoeffding(n, delta, loss_range=3.0)) / 3.0
    most = math.ceil(n * (risk - bound)) - 1  # successes that make the gap larger than the bound
    assert binom.cdf(most, n, risk) <= delta


def test_a_loss_range_outside_the_theorem_is_refused():
    with pytest.raises(SpecError, match="too small"):
        pac_bayes([2.0], 0.1, 1.0, width=1, samples=10, loss_range=0.1)
    with pytest.raises(SpecError, match="epsilon"):
        pac_bayes([2.0], 0.1, 1.0, width=1, samples=10, epsilon=0.0)
