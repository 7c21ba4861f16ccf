"""The A/A check, through summaries and decision, and that it can fail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunewise.advise import statistics
from tunewise.advise.aa import check_by_simulation, max_allowed
from tunewise.errors import SpecError

SPREADS = {
    "usual": ([0.90, 0.91, 0.92, 0.905], [0.20, 0.24, 0.21, 0.22]),
    "erratic": ([0.60, 0.91, 0.92, 0.75], [0.20, 0.64, 0.01, 0.32]),
    "one item": ([0.900, 0.901, 0.900, 0.901], [0.2000, 0.2001, 0.2000, 0.2001]),
}


def runs_of(records, spread):
    scores, gaps = SPREADS[spread]
    return records({"lora": scores}, {"lora": gaps})


def test_in_200_repeats_19_are_allowed():
    assert max_allowed(200) == 19
    assert stats.binom.cdf(19, 200, 0.05) >= 0.997 > stats.binom.cdf(18, 200, 0.05)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("spread", SPREADS)
def test_one_method_against_itself_is_called_different_at_most_19_times_in_200(records, spread, seeds):
    for check in check_by_simulation(runs_of(records, spread), seeds):
        assert check.repeats == 200
        assert check.different <= 19, check
        assert check.holds


@pytest.mark.parametrize("seeds", [3, 10])
def test_nor_are_four_names_of_one_method_beside_the_reference_or_beside_the_best(records, seeds):
    checks = check_by_simulation(runs_of(records, "usual"), seeds, names=4)
    assert {(c.quantity, c.against) for c in checks} == {
        (of, beside) for of in ("metric", "gap") for beside in ("the reference", "the best")
    }
    for check in checks:
        assert check.different <= 19, check


def test_a_test_that_takes_the_normal_quantile_for_3_seeds_fails_the_check(records, monkeypatch):
    monkeypatch.setattr(statistics, "t_quantile", lambda confidence, dof: stats.norm.ppf(0.5 + confidence / 2))
    monkeypatch.setattr("scipy.special.stdtr", lambda dof, t: stats.norm.cdf(t))
    metric, gap = check_by_simulation(runs_of(records, "usual"), 3)
    assert not metric.holds
    assert not gap.holds


def test_a_choice_by_score_tested_as_if_it_had_been_named_beforehand_fails_the_check(records, monkeypatch):
    monkeypatch.setattr("tunewise.advise.objectives.compare_to_best", statistics.compare_to_reference)
    checks = check_by_simulation(runs_of(records, "usual"), 10, repeats=30, names=12)
    assert {c.against for c in checks if not c.holds} == {"the best"}


def test_the_check_comes_out_the_same_each_time(records):
    runs = runs_of(records, "usual")
    assert check_by_simulation(runs, 3, repeats=20) == check_by_simulation(runs, 3, repeats=20)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_rate_is_scipys_exact_one(case):
    called, repeats = case
    theirs = stats.binomtest(called, repeats).proportion_ci(0.95, method="exact")
    assert statistics.proportion_interval(called, repeats) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_too_few_runs_are_refused_with_the_way_out(records):
    with pytest.raises(SpecError, match="at least 2"):
        check_by_simulation(records({"lora": [0.9]}), 3)
    with pytest.raises(SpecError, match="1 seed, "):
        check_by_simulation(records({"lora": [0.9, 0.91]}), 1)
