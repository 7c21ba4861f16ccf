"""Spearman's rho is scipy's, its p the exact one, and neither claims a relation where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr

from tunewise.advise.rank_correlation import rank_correlation


@pytest.mark.parametrize("n", [4, 5, 7, 12])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_scipy(n: int, ties: bool) -> None:
    draw = np.random.default_rng(n)
    x, y = draw.standard_normal(n), draw.standard_normal(n)
    if ties:
        x, y = np.round(x), np.round(y)
    found = rank_correlation(x.tolist(), y.tolist())
    assert found is not None
    assert found.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.low <= found.rho <= found.high
    if n <= 7 and not ties:  # with ties scipy doubles the smaller tail
        exact = permutation_test(
            (x,), lambda a: spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert found.p == pytest.approx(exact.pvalue, abs=1e-9)


def test_a_perfect_order_of_four_methods_shows_nothing() -> None:
    found = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])
    assert found is not None
    assert (found.rho, found.high, found.p) == (1.0, 1.0, pytest.approx(2 / 24))
    assert found.low < 0


def test_a_perfect_reverse_order_of_seven_does() -> None:
    found = rank_correlation(list(range(7)), [-(i**3) for i in range(7)])
    assert found is not None
    assert found.rho == -1 and found.p == pytest.approx(2 / 5040)
    assert found.high < -0.5


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [0] * 4)])
def test_too_few_and_constant_ones_have_none(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN"):
        rank_correlation([1, 2, 3, float("nan")], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="against"):
        rank_correlation([1, 2], [1])


@pytest.mark.parametrize("n", [5, 6, 11])
def test_independent_numbers_are_rarely_called_related(n: int) -> None:
    draw = np.random.default_rng(0)
    called = excluded = 0
    for _ in range(150):
        found = rank_correlation(draw.standard_normal(n).tolist(), draw.standard_normal(n).tolist())
        assert found is not None
        called += found.p < 0.05
        excluded += not found.low <= 0 <= found.high
    assert called <= 15 and excluded <= 20  # at 5 %, P(more than 15 of 150) = 0.3 %
