"""One row a method: what enters a mean, what is counted apart, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunewise.advise.items import Predictions
from tunewise.advise.statistics import mean_interval
from tunewise.advise.summary import add_item_comparisons, summarise
from tunewise.errors import SpecError, StoreError
from tunewise.store.records import Results

SCORES = {"lora": [0.90, 0.91, 0.92], "cla": [0.89, 0.92, 0.90]}
GAPS = {"lora": [0.20, 0.22, 0.21], "cla": [0.10, 0.115, 0.12]}


def with_loss(record, loss):
    results = record.results
    worse = Results(**{**dict(results), "test": results.test.model_copy(update={"loss": loss})})
    return record.model_copy(update={"results": worse})


def test_means_are_t_intervals_over_the_seeds(records):
    lora, cla = summarise(records(SCORES, GAPS), None, "lora")
    assert lora.test_metric == mean_interval(SCORES["lora"])
    assert cla.gap.mean == pytest.approx(0.335 / 3)
    assert cla.test_loss.mean == pytest.approx(0.2 + 0.335 / 3)
    assert (cla.train_loss.mean, cla.validation_loss.mean) == pytest.approx((0.2, 0.25))
    assert cla.metric_by_seed == dict(enumerate(SCORES["cla"]))
    assert (cla.seeds, cla.test_items, cla.trainable, cla.name) == ((0, 1, 2), 1000, 10_000, "cla")


def test_methods_come_in_the_order_of_first_appearance(records):
    rows = summarise([*records({"cla": [0.9]}), *records({"lora": [0.9]})], None, "lora")
    assert [row.label for row in rows] == ["cla", "lora"]


def test_the_gap_is_normalised_to_the_references_as_a_paired_ratio(records):
    lora, cla = summarise(records(SCORES, GAPS), None, "lora")
    assert (lora.gap_ratio.mean, lora.gap_ratio.low) == pytest.approx((1, 1))
    assert cla.gap_ratio.mean == pytest.approx(0.335 / 0.63)
    assert cla.gap_ratio.low < cla.gap_ratio.mean < cla.gap_ratio.high


def test_a_smaller_gap_is_better(records):
    lora, cla = summarise(records(SCORES, GAPS), None, "lora")
    assert cla.gap_comparison.verdict == "better"
    assert cla.metric_comparison.verdict == "no difference seen"
    assert lora.is_reference
    assert lora.gap_comparison is lora.metric_comparison is None


@pytest.mark.parametrize("status", ["failed", "diverged", "oom", "running"])
def test_only_finished_runs_enter_a_mean_and_the_others_are_counted(records, record, status):
    runs = [*records({"lora": [0.90, 0.92]}), record("lora", 2, accuracy=0.1, status=status)]
    (lora,) = summarise(runs, None, "lora")
    assert lora.test_metric.mean == pytest.approx(0.91)
    assert lora.missing == {status: 1}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_with_a_loss_that_is_no_number_counts_as_diverged(records, record, loss):
    runs = [*records({"lora": [0.90, 0.92]}), with_loss(record("lora", 2), loss)]
    (lora,) = summarise(runs, None, "lora")
    assert lora.seeds == (0, 1)
    assert lora.missing == {"diverged": 1}


def test_a_failed_try_is_forgotten_once_its_seed_is_done(record):
    (lora,) = summarise([record("lora", 0, status="failed"), record("lora", 0)], None, "lora")
    assert lora.missing == {}


def test_a_method_without_a_finished_run_keeps_its_row(records, record):
    lora, fft = summarise([*records({"lora": [0.9]}), record("fft", 0, status="oom")], None, "lora")
    assert (fft.test_metric, fft.gap, fft.gap_ratio, fft.seeds) == (None, None, None, ())
    assert fft.missing == {"oom": 1}
    assert fft.metric_comparison.verdict == "not tested"
    assert lora.test_metric.n == 1


def test_all_runs_may_have_failed(record):
    lora, cla = summarise([record("lora", 0, status="oom"), record("cla", 0, status="diverged")], None, "lora")
    assert lora.test_metric is cla.test_metric is None
    assert cla.floor is cla.test_items is None


@pytest.mark.parametrize("absent", ["fft", "asym"])
def test_the_reference_falls_back_to_the_first_method_that_finished(records, record, absent):
    runs = [record("fft", 0, status="diverged"), *records(SCORES)]
    rows = summarise(runs, None, absent)
    assert {row.reference for row in rows} == {"lora"}


def test_costs_are_matched_by_label_and_may_be_absent(records, costs):
    lora, cla = summarise(records(SCORES), costs({"cla": 1.1, "frozen floor": 1.0}), "lora")
    assert lora.cost is lora.peak_bytes is lora.saved_bytes is None
    assert cla.cost.ratio_to_floor == 1.1
    assert cla.peak_bytes == 2**30


def test_another_metric_can_be_asked_for(records):
    lora, _ = summarise(records(SCORES), None, "lora", metric="macro_f1")
    assert lora.metric == "macro_f1"
    assert lora.test_metric.mean == pytest.approx(0.90)
    with pytest.raises(SpecError, match="did you mean 'accuracy'"):
        summarise(records(SCORES), None, "lora", metric="acuracy")


def test_no_runs_are_refused_with_the_way_out():
    with pytest.raises(SpecError, match="tunewise compare"):
        summarise([], None, "lora")


def test_runs_on_different_data_are_refused(record):
    with pytest.raises(SpecError, match="different models, data"):
        summarise([record("lora", 0), record("cla", 0, data="other.csv")], None, "lora")
    with pytest.raises(SpecError, match="test splits"):
        summarise([record("lora", 0), record("cla", 0, items=500)], None, "lora")


def test_two_different_runs_of_one_method_and_seed_are_refused(record):
    run = record("lora", 0)
    with pytest.raises(SpecError, match="two finished runs at seed 0"):
        summarise([run, run.model_copy(update={"id": "another"})], None, "lora")
    assert len(summarise([run, run], None, "lora")) == 1


def test_a_done_run_without_results_is_called_damaged(record):
    run = record("lora", 0).model_copy(update={"results": None})
    with pytest.raises(StoreError, match="has no results"):
        summarise([run], None, "lora")


def test_of_a_metric_that_is_better_lower_the_lower_is_called_better(records):
    def perplexity(record):
        results = record.results
        metrics = {"perplexity": 20 * (2 - results.test.metrics["accuracy"])}
        changed = {"metric": "perplexity", "lower_is_better": ["perplexity"], "confusion": None}
        changed |= {
            s: getattr(results, s).model_copy(update={"metrics": metrics}) for s in ("train", "validation", "test")
        }
        return record.model_copy(update={"results": Results(**{**dict(results), **changed})})

    scores = {"lora": [0.50, 0.51, 0.52], "cla": [0.70, 0.712, 0.721], "asym": [0.30, 0.312, 0.321]}
    rows = {row.label: row for row in summarise([perplexity(r) for r in records(scores)], None, "lora")}
    assert not rows["cla"].higher_is_better
    assert not rows["cla"].is_share
    assert rows["cla"].metric_comparison.verdict == "better"
    assert rows["asym"].metric_comparison.verdict == "worse"
    assert rows["cla"].merit > rows["lora"].merit > rows["asym"].merit
    assert rows["lora"].floor is None


def test_the_difference_to_the_reference_is_compared_item_by_item_where_the_answers_are_known(records):
    rows = summarise(records(SCORES), None, "lora")
    labels = np.array([0, 1] * 20)
    answers = {
        "lora": {s: Predictions(labels, labels) for s in range(3)},
        "cla": {s: Predictions(np.where(np.arange(40) < 4, 1 - labels, labels), labels) for s in range(3)},
    }
    lora, cla = add_item_comparisons(rows, answers)
    assert lora.item_comparison is None
    assert cla.item_comparison.difference == pytest.approx(-0.1)
    assert cla.item_comparison.seeds == 3
    assert all(row.item_comparison is None for row in add_item_comparisons(rows, {}))
    other = {**answers, "cla": {0: Predictions(labels, 1 - labels)}}
    with pytest.raises(StoreError, match=r"cla and lora.*same items"):
        add_item_comparisons(rows, other)
