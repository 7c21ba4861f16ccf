"""The noise of the test items: closed forms, coverage, and a bootstrap where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunewise.advise.items import (
    CLASS_METRICS,
    ItemScores,
    Predictions,
    bootstrap_metric,
    compare_accuracy,
    compare_by_item,
    compare_item_scores,
)

metrics = pytest.importorskip("sklearn.metrics")
relaxed = settings(deadline=None)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@relaxed
@given(pairs)
def test_for_one_seed_p_is_mcnemars_exact_one_and_the_interval_agresti_and_mins(rows):
    a, b = zip(*rows)
    noise = compare_accuracy([a], [b])
    only_a, only_b = sum(x and not y for x, y in rows), sum(y and not x for x, y in rows)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert noise.p == pytest.approx(expected)
    assert noise.difference == pytest.approx(np.mean(a) - np.mean(b))
    n, n12, n21 = len(rows) + 2, only_a + 0.5, only_b + 0.5
    half = 1.959964 * math.sqrt(n12 + n21 - (n12 - n21) ** 2 / n) / n
    assert (noise.low, noise.high) == pytest.approx(((n12 - n21) / n - half, (n12 - n21) / n + half), abs=1e-6)


def test_for_many_items_the_interval_over_seeds_is_that_of_a_mean_over_items():
    random = np.random.default_rng(0)
    hard = random.random(5000)
    a, b = (random.random((3, 5000)) < np.clip(hard + shift, 0, 1) for shift in (0.05, 0.0))
    noise = compare_accuracy(a.tolist(), b.tolist())
    d = (a.astype(float) - b).mean(0)
    low, high = stats.norm.interval(0.95, d.mean(), stats.sem(d))
    assert (noise.low, noise.high) == pytest.approx((low, high), abs=5e-4)
    assert noise.p == pytest.approx(2 * stats.norm.sf(abs(d.mean()) / stats.sem(d)), abs=1e-3)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_hold_the_true_difference_as_often_as_they_say(seeds):
    """Fixed models, test sets drawn anew: each item has its own chance to be right under a and under b."""
    random = np.random.default_rng(3)
    kinds = np.array([[0.95, 0.90], [0.6, 0.5], [0.1, 0.2]])
    share = np.array([0.7, 0.2, 0.1])
    truth = float(share @ (kinds[:, 0] - kinds[:, 1]))
    held = 0
    for _ in range(400):
        kind = random.choice(3, 80, p=share)
        a, b = (random.random((seeds, 80)) < kinds[kind, i] for i in (0, 1))
        noise = compare_accuracy(a.tolist(), b.tolist())
        held += noise.low <= truth <= noise.high
    assert 0.92 * 400 <= held <= 400


def test_equal_answers_do_not_prove_equality():
    noise = compare_accuracy([[True] * 20] * 3, [[True] * 20] * 3)
    assert noise.low < -0.05 < 0.05 < noise.high
    assert noise.p == 1.0


def test_the_same_items_are_needed():
    for a, b in (([[True]], [[True, False]]), ([], []), ([[]], [[]]), ([[True]], [[True], [True]])):
        with pytest.raises(ValueError, match="same items"):
            compare_accuracy(a, b)
    one = Predictions(np.array([0, 1]), np.array([0, 1]))
    other = Predictions(np.array([0, 1]), np.array([1, 1]))
    with pytest.raises(ValueError, match="same items"):
        compare_by_item({0: one}, {0: other}, "accuracy")


@relaxed
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=50))
def test_metrics_of_a_confusion_matrix_are_sklearns(rows):
    true, predicted = (np.array(side) for side in zip(*rows))
    table = np.bincount(true * 4 + predicted, minlength=16).reshape(4, 4).astype(float)
    present = sorted({*true.tolist(), *predicted.tolist()})
    assert CLASS_METRICS["accuracy"](table) == pytest.approx(metrics.accuracy_score(true, predicted))
    theirs = metrics.f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert CLASS_METRICS["macro_f1"](table) == pytest.approx(theirs)
    two_true, two_predicted = true % 2, predicted % 2
    two = np.bincount(two_true * 2 + two_predicted, minlength=4).reshape(2, 2).astype(float)
    assert CLASS_METRICS["f1"](two) == pytest.approx(metrics.f1_score(two_true, two_predicted, zero_division=0))
    assert CLASS_METRICS["matthews"](table) == pytest.approx(metrics.matthews_corrcoef(true, predicted), abs=1e-12)


def test_the_bootstrap_agrees_with_the_closed_form_where_there_is_one():
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 400)
    a = [np.where(random.random(400) < 0.9, labels, (labels + 1) % 3) for _ in range(2)]
    b = [np.where(random.random(400) < 0.8, labels, (labels + 1) % 3) for _ in range(2)]
    closed = compare_accuracy([(row == labels).tolist() for row in a], [(row == labels).tolist() for row in b])
    drawn = bootstrap_metric(a, b, labels, "accuracy")
    assert drawn.difference == pytest.approx(closed.difference)
    assert (drawn.low, drawn.high) == pytest.approx((closed.low, closed.high), abs=0.006)
    assert drawn.excludes_zero
    assert drawn.p < 0.01


def test_other_metrics_of_classes_are_drawn_and_what_is_no_metric_of_classes_is_left_out():
    labels = np.array([0, 1] * 30)
    right, wrong = Predictions(labels, labels), Predictions(1 - labels, labels)
    noise = compare_by_item({0: right, 1: right}, {0: wrong, 1: wrong, 2: right}, "matthews")
    assert (noise.difference, noise.seeds, noise.test) == (2.0, 2, "item bootstrap")
    assert compare_by_item({0: right}, {0: wrong}, "perplexity") is None
    assert compare_by_item({0: right}, {1: wrong}, "accuracy") is None


def item_scores(rows):
    return {seed: ItemScores(np.array(row, float), [str(i) for i in range(len(row))]) for seed, row in enumerate(rows)}


def test_real_scores_are_compared_by_a_paired_t_test():
    draw = np.random.default_rng(3)
    a, b = draw.random((2, 30)), draw.random((2, 30)) * 0.8
    found = compare_item_scores(item_scores(a), item_scores(b))
    expected = stats.ttest_rel(a.mean(0), b.mean(0))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.difference, found.n, found.seeds) == (pytest.approx((a - b).mean()), 30, 2)


def test_scores_of_0_and_1_are_compared_as_accuracies():
    a, b = [[1, 1, 1, 0, 1, 0]], [[1, 0, 0, 0, 1, 0]]
    assert compare_item_scores(item_scores(a), item_scores(b)) == compare_accuracy(a, b)


def test_scores_of_other_items_are_refused():
    one = item_scores([[0, 1]])
    with pytest.raises(ValueError, match="same items"):
        compare_item_scores(one, {0: ItemScores(np.array([0.0, 1.0]), ["0", "other"])})
    assert compare_item_scores(one, {}) is None
    same = compare_item_scores(item_scores([[0.5, 0.5]]), item_scores([[0.5, 0.5]]))
    assert (same.difference, same.p) == (0, 1)
