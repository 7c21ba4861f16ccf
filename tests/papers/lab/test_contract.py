"""The rule of the verdict, and that no part of a result escapes it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewise.papers.lab.contract import (
    Finding,
    LabSettings,
    Measurement,
    PlotCurve,
    judge,
    log_log_slope,
    log_log_slopes,
    overall,
)
from tunewise.papers.lab.registry import STATEMENTS
from tunewise.papers.lab.results import Result

finite = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("measured_", "expected", "verdict"),
    [
        ((0.4, 0.6), (0.0, 1.0), "confirmed"),
        ((0.0, 1.0), (0.0, 1.0), "confirmed"),
        ((0.9, 1.1), (0.0, 1.0), "inconclusive"),
        ((-1.0, 2.0), (0.0, 1.0), "inconclusive"),
        ((1.01, 1.1), (0.0, 1.0), "refuted"),
        ((0.0, 0.0), (0.0, 0.0), "confirmed"),
        ((1.0, 1.0), (0.0, 0.0), "refuted"),
        ((0.0, 3.0), (0.0, 0.0), "inconclusive"),
        ((5.0, 5.0), (1.0, math.inf), "confirmed"),
        ((math.nan, math.nan), (0.0, 1.0), "inconclusive"),
        ((math.inf, math.inf), (0.0, 1.0), "refuted"),
    ],
)
def test_inside_confirms_apart_refutes_the_rest_is_inconclusive(measured_, expected, verdict):
    assert judge(*measured_, expected) == verdict


@given(finite, finite, finite, finite)
def test_a_wider_expectation_never_refutes_what_a_narrower_one_did_not(a, b, c, d):
    low, high = sorted((a, b))
    least, most = sorted((c, d))
    order = ["refuted", "inconclusive", "confirmed"]
    narrow, wide = judge(low, high, (least, most)), judge(low, high, (least - 1, most + 1))
    assert order.index(wide) >= order.index(narrow)


def test_an_interval_the_wrong_way_round_is_an_error():
    with pytest.raises(ValueError, match="wrong order"):
        judge(1.0, 0.0, (0.0, 1.0))


def test_one_refuted_finding_refutes_one_unclear_one_leaves_it_open():
    yes, no = Finding.exact("a", 0.5, (0, 1)), Finding.exact("b", 2.0, (0, 1))
    open_, only_reported = Finding("c", 0.5, -1.0, 2.0, (0, 1)), Finding.exact("d", 99.0, None)
    assert overall([yes, only_reported]) == "confirmed"
    assert overall([yes, open_]) == "inconclusive"
    assert overall([yes, open_, no]) == "refuted"
    assert overall([]) == overall([only_reported]) == "inconclusive"


def test_a_result_has_the_verdict_of_its_findings_and_no_other():
    statement = next(iter(STATEMENTS.values()))
    refuted = Result(statement, LabSettings(), Measurement([Finding.exact("a", 2.0, (0, 1))], []), 1.0, {})
    assert refuted.verdict == "refuted"
    with pytest.raises(TypeError):
        Result(statement, LabSettings(), refuted.measurement, 1.0, {}, verdict="confirmed")


def test_a_curve_of_unequal_lengths_is_an_error():
    with pytest.raises(ValueError, match="differ in length"):
        PlotCurve("a", [1, 2], [1.0])
    with pytest.raises(ValueError, match="differ in length"):
        PlotCurve("a", [1, 2], [1.0, 2.0], low=[0.0, 1.0])


def test_a_mean_of_one_repetition_or_of_a_nan_says_nothing():
    assert Finding.mean("a", [0.5], (0, 1)).verdict == "inconclusive"
    assert Finding.mean("a", [0.5, math.nan], (0, 1)).verdict == "inconclusive"
    assert Finding.mean("a", [], (0, 1)).verdict == "inconclusive"
    assert Finding.mean("a", [0.5, 0.51, 0.49], (0, 1)).verdict == "confirmed"


def test_slopes_are_those_of_power_laws():
    x = [1.0, 3.0, 10.0]
    assert log_log_slope(x, [5 * v**-0.5 for v in x]) == pytest.approx(-0.5, abs=1e-12)
    assert log_log_slopes(x, [x, [v**2 for v in x]]) == pytest.approx([1.0, 2.0], abs=1e-12)


def test_a_curve_of_means_has_the_t_interval_of_each_column():
    curve = PlotCurve.mean("a", [1, 2], [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom, 97.5 %
    assert curve.y == [2.0, 5.0]
    assert curve.low == pytest.approx([2 - half, 5.0], rel=1e-9)
    assert curve.high == pytest.approx([2 + half, 5.0], rel=1e-9)


def test_settings_choose_by_scale():
    assert LabSettings().choose(quick=1, full=2) == 1
    assert LabSettings(scale="full").choose(quick=1, full=2) == 2
