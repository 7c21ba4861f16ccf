"""Intervals, tests and corrections against scipy's own, and the error rates they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tunewise.advise.statistics import (
    compare_to_reference,
    holm,
    item_standard_error,
    mean_interval,
    paired_difference,
    paired_power,
    ratio_interval,
    standard_error,
)

# A shared machine may stall for a moment, and the first example imports scipy.
relaxed = settings(deadline=None)

scores = st.floats(-100, 100).map(lambda x: round(x, 6))
score_rows = st.lists(scores, min_size=2, max_size=10)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def by_seed(values):
    return dict(enumerate(values))


@relaxed
@given(score_rows, st.floats(0.5, 0.999))
def test_mean_interval_is_scipys_t_interval(values, confidence):
    interval = mean_interval(values, confidence)
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
        assert interval.low == pytest.approx(low, rel=1e-9, abs=1e-9)
        assert interval.high == pytest.approx(high, rel=1e-9, abs=1e-9)
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.n == len(values)


def test_one_value_has_a_mean_but_no_interval():
    interval = mean_interval([0.7])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.7, None, None, 1)
    assert interval.half_width is None
    assert standard_error([0.7]) is None


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_no_values_and_values_that_are_not_numbers_are_refused(values):
    with pytest.raises(ValueError):
        mean_interval(values)


@relaxed
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=10))
def test_paired_difference_is_scipys_paired_t_test(pairs):
    a, b = zip(*pairs)
    differences = np.subtract(a, b)
    assume(differences.std() > 1e-6)
    ours = paired_difference(by_seed(a), by_seed(b))
    theirs = stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@relaxed
@given(st.dictionaries(st.integers(0, 9), scores), st.dictionaries(st.integers(0, 9), scores))
def test_swapping_the_two_sides_turns_the_difference_round(a, b):
    assume(a.keys() & b.keys())
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert there.p == pytest.approx(back.p)
    if there.low is not None:
        assert there.low == pytest.approx(-back.high)


def test_only_common_seeds_enter_a_paired_difference():
    difference = paired_difference({0: 1.0, 1: 2.0, 7: 99.0}, {1: 1.5, 0: 0.0, 8: -99.0})
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.75)


def test_no_common_seed_is_refused():
    with pytest.raises(ValueError, match="common seed"):
        paired_difference({0: 1.0}, {1: 1.0})


def test_one_common_seed_proves_nothing():
    difference = paired_difference({0: 0.9}, {0: 0.1})
    assert (difference.p, difference.low, difference.high) == (1.0, None, None)


def test_identical_scores_have_p_one():
    same = by_seed([0.81, 0.84, 0.8])
    assert paired_difference(same, dict(same)).p == 1.0
    assert paired_difference(same, dict(same), resolution=0.01).p == 1.0


def test_identical_scores_on_few_items_do_not_prove_equality():
    same = by_seed([0.81, 0.84, 0.8])
    difference = paired_difference(same, dict(same), resolution=0.01)
    assert difference.low < -0.01 < 0.01 < difference.high


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_a_constant_difference_gets_the_sign_test_where_the_step_is_unknown(n):
    a = [0.5 + 0.01 * i for i in range(n)]
    difference = paired_difference(by_seed([x + 0.1 for x in a]), by_seed(a))
    assert difference.mean == pytest.approx(0.1)
    assert difference.p == stats.binomtest(n, n).pvalue
    assert (difference.low is not None) == (difference.p < 0.05)


def test_one_item_more_at_each_of_three_seeds_is_no_difference():
    a, b = by_seed([0.91, 0.92, 0.90]), by_seed([0.90, 0.91, 0.89])
    assert paired_difference(a, b, resolution=0.01).p > 0.05


def test_a_large_constant_difference_is_seen_where_the_step_is_known():
    a, b = by_seed([1.0, 1.0, 1.0]), by_seed([0.5, 0.5, 0.5])
    assert paired_difference(a, b, resolution=0.01).p < 0.001


@relaxed
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=2, max_size=8))
def test_the_ends_of_a_ratio_interval_are_where_the_paired_t_test_turns(pairs):
    a, b = by_seed([x for x, _ in pairs]), by_seed([y for _, y in pairs])
    interval = ratio_interval(a, b)
    assert interval.mean == pytest.approx(sum(a.values()) / sum(b.values()))
    assume(interval.low is not None and interval.high - interval.low > 1e-3 and interval.high < 1e3)
    for end in (interval.low, interval.high):
        shifted = paired_difference(a, {seed: end * y for seed, y in b.items()})
        assert shifted.p == pytest.approx(0.05, abs=1e-4)


def test_a_ratio_to_what_is_not_told_apart_from_zero_has_no_bounds():
    interval = ratio_interval(by_seed([0.1, 0.1, 0.1]), by_seed([0.5, -0.4, 0.1]))
    assert (interval.low, interval.high) == (None, None)


def test_a_ratio_to_a_negative_mean_is_not_given():
    assert ratio_interval(by_seed([0.1, 0.2]), by_seed([-0.1, -0.2])) is None
    assert ratio_interval({0: 1.0}, {1: 1.0}) is None


@relaxed
@given(score_rows.filter(lambda row: sum(row) > 1))
def test_a_ratio_to_oneself_is_exactly_one(row):
    interval = ratio_interval(by_seed(row), by_seed(row))
    assert interval.mean == 1
    if interval.low is not None:
        assert (interval.low, interval.high) == pytest.approx((1, 1), abs=1e-6)


def test_holm_gives_the_textbook_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@relaxed
@given(p_values)
def test_holm_lies_between_no_correction_and_bonferronis(p):
    adjusted = holm(p)
    assert all(a <= b <= min(1.0, len(p) * a) + 1e-12 for a, b in zip(p, adjusted))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError):
        holm([0.5, 1.5])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=2, max_size=5))
def test_a_corrected_interval_excludes_zero_exactly_where_a_difference_is_called(rows):
    table = {f"m{i}": by_seed([x / 50 for x in row]) for i, row in enumerate(rows)}
    for comparison in compare_to_reference(table, "m0", True, resolution=1 / 50):
        excludes = comparison.low > 0 or comparison.high < 0
        assert excludes == (comparison.verdict in ("better", "worse"))
        assert (comparison.verdict == "better") == (comparison.low > 0)


def test_lower_is_better_turns_the_verdict_round():
    table = {"low": by_seed([0.1, 0.11, 0.12]), "high": by_seed([0.5, 0.51, 0.53])}
    assert compare_to_reference(table, "high", False)[0].verdict == "better"
    assert compare_to_reference(table, "high", True)[0].verdict == "worse"


def test_more_comparisons_ask_for_more_evidence():
    reference = [0.80, 0.82, 0.81, 0.83]
    better = [0.82, 0.83, 0.84, 0.84]
    noise = [[0.80, 0.83, 0.80, 0.83], [0.81, 0.82, 0.82, 0.82], [0.79, 0.83, 0.81, 0.83]]
    alone = compare_to_reference({"ref": by_seed(reference), "new": by_seed(better)}, "ref", True)
    among = {"ref": by_seed(reference), "new": by_seed(better)}
    among |= {f"noise {i}": by_seed(row) for i, row in enumerate(noise)}
    assert alone[0].verdict == "better"
    assert compare_to_reference(among, "ref", True)[0].verdict == "no difference seen"


def test_a_method_without_two_common_seeds_is_not_tested_and_not_counted():
    table = {
        "ref": {0: 0.8, 1: 0.81, 2: 0.8},
        "one": {0: 0.9},
        "none": {9: 0.9},
        "all": {0: 0.9, 1: 0.91, 2: 0.9},
    }
    found = {c.name: c for c in compare_to_reference(table, "ref", True, resolution=0.01)}
    assert found["one"].verdict == found["none"].verdict == "not tested"
    assert found["none"].difference is None
    assert found["one"].difference.n == 1
    assert found["all"].p == found["all"].difference.p


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("items", [50, 1000])
def test_one_method_against_itself_is_called_different_at_most_19_times_in_200(seeds, items):
    random = np.random.default_rng(20240607)
    called = 0
    for _ in range(200):
        hard = random.normal(0, 0.01, seeds)  # what a seed does to both
        accuracy = random.binomial(items, 0.85 + hard, (2, seeds)) / items
        table = {"once": by_seed(accuracy[0]), "twice": by_seed(accuracy[1])}
        called += compare_to_reference(table, "once", True, resolution=1 / items)[0].verdict != "no difference seen"
    assert called <= 19


@pytest.mark.parametrize("seeds", [3, 10])
def test_six_copies_of_one_method_give_any_verdict_at_most_19_times_in_200(seeds):
    random = np.random.default_rng(7)
    called = 0
    for _ in range(200):
        accuracy = random.binomial(200, 0.85, (7, seeds)) / 200
        table = {f"copy {i}": by_seed(row) for i, row in enumerate(accuracy)}
        verdicts = {c.verdict for c in compare_to_reference(table, "copy 0", True, resolution=1 / 200)}
        called += verdicts != {"no difference seen"}
    assert called <= 19


def test_a_perfect_score_on_few_items_is_not_exact():
    assert item_standard_error(1.0, 20) > 0.03
    assert item_standard_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)


@relaxed
@given(st.floats(0.2, 3.0), st.integers(2, 30), st.floats(0.8, 0.999))
def test_the_power_of_a_paired_test_is_statsmodels_formula_by_scipys_noncentral_t(effect, seeds, confidence):
    bound, shift = stats.t.ppf(0.5 + confidence / 2, seeds - 1), effect * math.sqrt(seeds)
    theirs = stats.nct.sf(bound, seeds - 1, shift) + stats.nct.cdf(-bound, seeds - 1, shift)
    assume(math.isfinite(theirs))
    assert paired_power(effect, seeds, confidence) == pytest.approx(theirs, abs=2e-6)


def test_the_power_is_how_often_the_test_sees_a_true_difference():
    random = np.random.default_rng(1)
    for seeds, effect in ((3, 2.0), (10, 0.8)):
        drawn = random.normal(effect, 1, (4000, seeds))
        seen = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
        assert seen == pytest.approx(paired_power(effect, seeds), abs=0.025)
