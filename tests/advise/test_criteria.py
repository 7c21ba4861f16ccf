"""What a recommendation goes by: the metric, the generalization gap, or both."""

from __future__ import annotations

import pytest

from tunewise.advise.objectives import parse_criterion
from tunewise.advise.recommend import recommend
from tunewise.errors import SpecError

# With the gap: lora's scores are best, paca's gap is smallest, head learns little and has the smallest of all.
SCORES = {
    "head": [0.70, 0.71, 0.70],
    "lora": [0.905, 0.910, 0.905],
    "paca": [0.903, 0.908, 0.905],
    "cla": [0.904, 0.907, 0.904],
}
GAPS = {
    "head": [0.01, 0.012, 0.011],
    "lora": [0.40, 0.42, 0.41],
    "paca": [0.100, 0.104, 0.102],
    "cla": [0.30, 0.31, 0.305],
}
TIMES = {"head": 0.5, "lora": 1.35, "paca": 1.2, "cla": 1.1}


def test_by_the_metric_alone_the_cheapest_of_those_level_with_the_best_is_taken(summaries):
    assert recommend(summaries(SCORES, TIMES, GAPS)).choice == "cla"


def test_by_metric_and_gap_the_smallest_gap_of_those_as_good_is_taken(summaries):
    advice = recommend(summaries(SCORES, TIMES, GAPS), criterion="metric+gap")
    assert (advice.choice, advice.runner_up) == ("paca", "lora")
    assert "of the 3 methods that are as good it has the smallest generalization gap, 0.102 nats" in advice.answer


def test_a_small_gap_of_a_method_that_learns_little_is_worth_nothing_beside_the_metric(summaries):
    rows = summaries(SCORES, TIMES, GAPS)
    assert recommend(rows, criterion="metric+gap").choice != "head"
    alone = recommend(rows, criterion="gap")
    assert alone.choice == "head"
    assert alone.evidence == "thin"
    assert "a method that learns little has a small gap too" in alone.sentences[0]


def test_of_gaps_that_are_not_told_apart_the_cheaper_method_is_taken(summaries):
    gaps = GAPS | {"cla": [0.096, 0.108, 0.103], "paca": [0.094, 0.108, 0.103]}
    advice = recommend(summaries(SCORES, TIMES, gaps), criterion="metric+gap")
    assert (advice.choice, advice.runner_up) == ("cla", "paca")
    assert "within the noise" in advice.answer or "level with" in advice.answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy", ("metric", "accuracy")),
        ("metric", ("metric", None)),
        ("gap", ("gap", None)),
        ("accuracy+gap", ("metric+gap", "accuracy")),
        ("macro-f1 + gap", ("metric+gap", "macro_f1")),
        ("metric+gap", ("metric+gap", None)),
    ],
)
def test_a_criterion_is_read_as_it_is_written(text, expected):
    assert parse_criterion(text) == expected


@pytest.mark.parametrize("text", ["", "gap+accuracy", "accuracy+time", "accuracy+gap+gap", "+gap"])
def test_a_criterion_that_means_nothing_is_refused(text):
    with pytest.raises(SpecError, match="criterion"):
        parse_criterion(text)
