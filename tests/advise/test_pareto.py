"""The Pareto set and the order of cost."""

from __future__ import annotations

import math
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.advise.pareto import describe_saving, pareto_labels, pareto_set, select_cheapest

# A shared machine may stall for a moment, and the first example imports scipy.
relaxed = settings(deadline=None)

value = st.one_of(st.none(), st.integers(0, 4).map(float))
tables = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.tuples(value, value), min_size=1)


def test_what_is_beaten_on_every_count_leaves_the_set():
    points = {"good": (0.9, -2.0), "cheap": (0.8, -1.0), "beaten": (0.8, -2.0)}
    assert pareto_set(points) == ["good", "cheap"]


def test_an_advantage_within_the_tolerance_removes_no_method():
    points = {"a": (0.90, -1.0), "b": (0.89, -1.0)}
    assert pareto_set(points, (0.02, 0.0)) == ["a", "b"]
    assert pareto_set(points, (0.005, 0.0)) == ["a"]


def test_equal_points_both_stay():
    assert pareto_set({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]


def test_an_unknown_value_is_neither_beaten_nor_beats():
    points = {"known": (0.9, -1.0), "unknown": (0.5, math.nan), "worse unknown": (0.4, None)}
    assert pareto_set(points) == ["known", "unknown"]


@relaxed
@given(tables, st.floats(0, 3))
def test_the_set_is_never_empty_and_what_left_is_beaten_by_one_that_stayed(points, width):
    tolerance = (width, width)
    kept = pareto_set(points, tolerance)
    assert kept
    for name in points.keys() - set(kept):
        beaten = {name: points[name]}
        assert any(pareto_set(beaten | {k: points[k]}, tolerance) == [k] for k in kept)


@relaxed
@given(tables)
def test_a_tolerance_only_adds_methods(points):
    assert set(pareto_set(points)) <= set(pareto_set(points, (1.0, 1.0)))


@relaxed
@given(tables)
def test_the_best_on_an_axis_is_always_matched_inside_the_set(points):
    known = [score for score, cost in points.values() if score is not None and cost is not None]
    kept = pareto_set(points)
    if known:
        assert max(known) in [points[k][0] for k in kept]


def test_a_low_score_with_a_small_gap_stays_in_the_set_of_methods(summaries):
    rows = summaries(
        {"lora": [0.9, 0.91], "cla": [0.8, 0.81]},
        ratios={"lora": 1.2, "cla": 1.2},
        gaps={"lora": [0.3, 0.3], "cla": [0.1, 0.1]},
    )
    assert pareto_labels(rows) == ["lora", "cla"]


def test_step_time_decides_where_the_intervals_do_not_overlap(summaries):
    a, b = summaries({"lora": [0.9], "cla": [0.9]}, ratios={"lora": 1.1, "cla": 1.3})
    assert select_cheapest([a, b]).label == "lora"
    assert "15 % less time" in describe_saving(a, b)
    assert describe_saving(b, a) == ""


def test_memory_decides_between_overlapping_step_times(records, costs):
    from tunewise.advise.summary import summarise

    probe = costs({"lora": 1.10, "cla": 1.11}, spread=0.02, lora=2**31, cla=2**30)
    a, b = summarise(records({"lora": [0.9], "cla": [0.9]}), probe, "lora")
    assert select_cheapest([a, b]).label == "cla"
    assert describe_saving(b, a) == "it needs 50 % less memory"
    assert describe_saving(a, b) == ""


def test_trainable_parameters_decide_where_time_and_memory_do_not(summaries):
    a, b = summaries({"lora": [0.9], "cla": [0.9]}, ratios={"lora": 1.1, "cla": 1.1})
    assert select_cheapest([a, b]).label == "cla"
    assert describe_saving(b, a) == "it trains 10,000 parameters instead of 20,000"


def test_costs_that_one_method_lacks_do_not_decide(summaries):
    rows = summaries({"lora": [0.9], "cla": [0.9]}, ratios={"lora": 1.0})
    assert select_cheapest(rows).label == "cla"


def test_of_equally_cheap_methods_the_better_is_taken(summaries):
    rows = summaries({"cla": [0.90], "r-cla": [0.91]}, ratios={"cla": 1.1, "r-cla": 1.1})
    assert select_cheapest(rows).label == "r-cla"


def test_importing_the_advice_loads_neither_torch_nor_scipys_statistics():
    code = "import sys, tunewise.advise.recommend; print([m for m in ('scipy.stats', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
