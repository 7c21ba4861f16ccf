"""Which rates are tried."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewise.study.policies.rate_grid import best_rate, edge, first_rates, next_rate

rates = st.floats(1e-6, 1.0)
factors = st.floats(1.5, 10.0)


def test_four_trials_go_round_the_default_and_once_further_up():
    assert first_rates(1e-3, 3.0, 4) == [0.001, 0.003, 0.000333, 0.009]
    assert first_rates(5e-5, 10.0, 3) == [5e-05, 0.0005, 5e-06]


@given(rates, factors, st.integers(2, 9))
def test_the_grid_has_equal_steps_of_the_logarithm_and_holds_the_middle(middle, factor, trials):
    grid = first_rates(middle, factor, trials)
    assert len(set(grid)) == trials
    assert grid[0] == pytest.approx(middle, rel=5e-3)
    steps = [math.log(b / a) for a, b in zip(sorted(grid), sorted(grid)[1:])]
    assert steps == pytest.approx([math.log(factor)] * len(steps), abs=1.1e-2)


def test_from_an_edge_the_next_trial_goes_outward():
    assert next_rate({0.1: 2.0, 0.3: 1.0}, 3.0) == 0.9
    assert next_rate({0.1: 1.0, 0.3: 2.0}, 3.0) == 0.0333


def test_inside_the_grid_the_next_trial_halves_the_gap_on_the_better_side_and_then_the_other():
    tried = {0.01: 3.0, 0.1: 1.0, 1.0: 2.0}
    assert next_rate(tried, 10.0) == 0.316
    tried[0.316] = 1.5
    assert next_rate(tried, 10.0) == 0.0316


@given(
    st.lists(st.tuples(rates, st.floats(0, 9)), min_size=2, max_size=6, unique_by=lambda p: round(math.log(p[0]), 1))
)
def test_a_further_trial_is_always_at_a_rate_of_its_own_next_to_the_best(pairs):
    tried = dict(pairs)
    new = next_rate(tried, 3.0)
    assert new not in tried
    nearest = sorted([*tried, new])
    at = nearest.index(new)
    assert best_rate(tried) in nearest[max(0, at - 1) : at + 2]


def test_a_best_rate_beside_one_that_diverged_is_not_on_the_edge():
    assert edge({0.1: 2.0, 0.3: 1.0, 0.9: math.inf}) is None
    assert edge({0.1: 2.0, 0.3: 1.0}) == "highest"
    assert edge({0.1: 1.0, 0.3: 2.0, 0.9: math.inf}) == "lowest"
