"""The recommendation: what is chosen, what is said, and what is never done."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewise.advise.decision import Limits
from tunewise.advise.objectives import objectives_for
from tunewise.advise.recommend import recommend
from tunewise.advise.statistics import mean_interval
from tunewise.advise.summary import summarise
from tunewise.errors import NoMethodWithinLimits, SpecError, TunewiseError
from tunewise.report.rows import build_table
from tunewise.spec import TuningSpec
from tunewise.store.records import MethodTuning, Trial, TuningReport


def margin(method):
    (objective,) = objectives_for("metric", method)
    return objective.margin(method)


RATIOS = {"head": 0.5, "cla": 1.1, "r-cla": 1.1, "lora": 1.35, "fft": 1.8}
LEVEL = {"head": [0.70, 0.71, 0.70], "lora": [0.900, 0.910, 0.905], "cla": [0.900, 0.905, 0.900]}
CLEAR = {"head": [0.70, 0.71, 0.70], "lora": [0.950, 0.951, 0.950], "cla": [0.90, 0.905, 0.90]}


def test_of_methods_level_with_the_best_the_cheapest_is_taken(summaries):
    advice = recommend(summaries(LEVEL, RATIOS))
    assert (advice.choice, advice.runner_up, advice.evidence) == ("cla", "lora", "enough")
    assert "within the noise" in advice.answer
    assert "less time" in advice.answer
    assert len(advice.sentences) == 2


def test_a_clearly_better_method_is_taken_though_it_costs_more(summaries):
    advice = recommend(summaries(CLEAR, RATIOS))
    assert (advice.choice, advice.runner_up, advice.evidence) == ("lora", "cla", "enough")
    assert "more than noise explains" in advice.answer


def test_a_cheap_method_10_points_below_is_not_taken_for_its_wide_interval(summaries):
    advice = recommend(summaries({"lora": [0.90, 0.91, 0.905], "cla": [0.90, 0.60, 0.91]}, RATIOS))
    assert advice.choice == "lora"
    assert advice.evidence == "thin"
    assert "with 3 seeds it is not shown to be worse" in advice.sentences[0]


def test_an_erratic_best_does_not_excuse_a_loss_of_10_points(summaries):
    rows = summaries({"lora": [0.95, 0.95, 0.65], "cla": [0.75, 0.75, 0.75]}, RATIOS, items=50)
    assert margin(rows[0]) == 0.03
    assert recommend(rows).choice == "lora"


def test_an_erratic_method_does_not_widen_the_margin_for_itself(summaries):
    steady = summaries({"lora": [0.90, 0.91, 0.905], "cla": [0.88, 0.88, 0.88]}, RATIOS)
    erratic = summaries({"lora": [0.90, 0.91, 0.905], "cla": [0.93, 0.83, 0.88]}, RATIOS)
    assert recommend(steady).choice == recommend(erratic).choice == "lora"


def test_a_small_but_certain_loss_is_not_given_away_unasked(summaries):
    scores = {"lora": [0.900, 0.910, 0.905, 0.91, 0.90], "cla": [0.897, 0.907, 0.902, 0.907, 0.897]}
    rows = summaries(scores, RATIOS, items=10_000)
    assert margin(rows[0]) > 0.0029
    assert recommend(rows).choice == "lora"


def test_a_certain_loss_within_the_tolerance_is_given_away_and_called_real(summaries):
    scores = {"lora": [0.900, 0.910, 0.905, 0.91, 0.90], "cla": [0.895, 0.905, 0.900, 0.905, 0.895]}
    rows = summaries(scores, RATIOS, items=10_000)
    assert recommend(rows, Limits(tolerance=0.004)).choice == "lora"
    advice = recommend(rows, Limits(tolerance=0.005))
    assert advice.choice == "cla"
    assert "a real loss" in advice.answer


def test_the_tolerance_named_as_what_would_change_the_answer_does_bring_the_method_in(summaries):
    rows = summaries(CLEAR, RATIOS)
    assert any("A tolerance of 4.9 points: then cla" in s for s in recommend(rows).would_change)
    assert recommend(rows, Limits(tolerance=0.049)).choice == "cla"


def test_the_noise_of_the_test_items_is_always_said(summaries):
    for scores in (LEVEL, CLEAR, {"lora": [0.9]}, {"lora": [0.9], "cla": [0.5]}):
        advice = recommend(summaries(scores, RATIOS, items=200))
        assert "The test set has 200 items" in advice.noise
        assert "±" in advice.noise


def test_what_could_have_been_missed_is_said(summaries):
    noise = recommend(summaries(LEVEL, RATIOS)).noise
    assert "difference of up to 0.6 points between cla and lora can go unseen" in noise


def test_one_seed_is_thin_and_decided_by_means_alone(summaries):
    advice = recommend(summaries({"lora": [0.90], "cla": [0.895]}, RATIOS))
    assert (advice.choice, advice.evidence) == ("cla", "thin")
    assert "one seed says nothing" in advice.noise
    assert any("at least 3" in s for s in advice.would_change)


def test_one_method_is_recommended_for_lack_of_others(summaries):
    advice = recommend(summaries({"lora": [0.90, 0.91, 0.92]}, RATIOS))
    assert (advice.choice, advice.runner_up, advice.pareto) == ("lora", None, ["lora"])
    assert "compared with no other method" in advice.sentences[0]


def test_without_costs_trainable_parameters_decide_and_that_is_said(summaries):
    advice = recommend(summaries(LEVEL))
    assert advice.choice == "cla"
    assert "10,000 parameters instead of 20,000" in advice.answer
    assert any("Measured costs" in s for s in advice.would_change)


def test_nothing_better_than_the_head_leads_to_the_head_and_thin_evidence(summaries):
    scores = {"head": [0.80, 0.81, 0.80], "lora": [0.80, 0.815, 0.81], "cla": [0.80, 0.80, 0.81]}
    advice = recommend(summaries(scores, RATIOS))
    assert (advice.choice, advice.evidence) == ("head", "thin")
    assert "no method is clearly better than training the head alone" in advice.sentences[0]


def test_a_best_score_at_chance_is_called_so(summaries):
    advice = recommend(summaries({"lora": [0.50, 0.51, 0.52], "cla": [0.50, 0.49, 0.51]}, RATIOS))
    assert advice.evidence == "thin"
    assert (
        "even the best score (51.0 %) is near that without learning (50.0 %, the best constant prediction)"
        in advice.sentences[0]
    )
    advice = recommend(summaries({"lora": [0.31, 0.30, 0.32], "cla": [0.30, 0.29, 0.31]}, RATIOS))
    words = "nothing was learned: even the best score (31.0 %) is no better than without learning (50.0 %, the best"
    assert words in advice.sentences[0]


@pytest.mark.parametrize("criterion", ["metric", "gap", "metric+gap"])
def test_no_method_is_recommended_where_nothing_was_learned(summaries, criterion):
    rows = summaries({"head": [0.31, 0.30, 0.32], "lora": [0.30, 0.29, 0.31]}, RATIOS)
    advice = recommend(rows, criterion=criterion)
    assert (advice.choice, advice.runner_up, advice.evidence) == (None, None, "thin")
    assert "nothing was learned: even the best score (31.0 %)" in advice.sentences[0]
    assert advice.answer.startswith(
        "No method is recommended: train longer, raise the learning rate, or check the data"
    )
    assert "Use" not in " ".join(advice.sentences + advice.would_change)
    assert not any(row.chosen for row in build_table(rows, advice).rows)


def test_a_cheap_method_at_the_floor_is_not_taken_for_a_better_one(summaries):
    rows = summaries({"lora": [0.50, 0.51, 0.52], "cla": [0.50, 0.49, 0.51]}, RATIOS)
    assert recommend(rows).choice == "lora"


def test_a_cheap_choice_that_could_lose_half_the_gain_is_called_thin(summaries):
    scores = {"head": [0.80, 0.80, 0.80], "lora": [0.88, 0.90, 0.89], "cla": [0.90, 0.87, 0.885]}
    advice = recommend(summaries(scores, RATIOS, items=200))
    assert (advice.choice, advice.evidence) == ("cla", "thin")
    assert "more than half of what lora gains over head" in advice.sentences[0]


def test_a_method_that_diverged_at_a_seed_takes_no_part(summaries):
    scores = {"lora": [0.90, 0.91, 0.90], "fft": [0.99, 0.99], "cla": [0.5, 0.5, 0.5]}
    advice = recommend(summaries(scores, RATIOS, fft={"diverged": 1}))
    assert advice.choice == "lora"
    assert "fft" not in advice.pareto
    assert "runs are missing (fft: 1 diverged)" in advice.sentences[0]
    assert any("missing runs of fft (1 diverged)" in s for s in advice.would_change)


def test_where_every_method_lost_a_run_all_take_part(summaries):
    scores = {"lora": [0.95, 0.95, 0.95], "cla": [0.7, 0.7, 0.7]}
    advice = recommend(summaries(scores, RATIOS, lora={"oom": 1}, cla={"failed": 1}))
    assert (advice.choice, advice.evidence) == ("lora", "thin")


def test_a_method_beyond_a_limit_is_left_out_and_named_where_it_was_better(records, costs):
    probe = costs(RATIOS, lora=3 * 2**30)
    rows = summarise(records(CLEAR), probe, "lora")
    advice = recommend(rows, Limits(max_memory_bytes=2 * 2**30))
    assert advice.choice == "cla"
    assert "lora" not in advice.pareto
    assert any("lora needs 3.00 GiB of 2.00" in s for s in advice.would_change)


def test_training_time_is_steps_times_the_probes_median_step(summaries):
    lora, *_ = sorted(summaries(LEVEL, RATIOS), key=lambda s: -s.training_seconds)
    assert lora.label == "lora"
    assert lora.training_seconds == pytest.approx(3 * 250 * 0.135)  # 4,000 examples by 16, 3 epochs; seconds a step
    (without, *_) = summaries(LEVEL)
    assert without.training_seconds == 60.0  # by the runs' own clock


def test_limits_that_nothing_fits_are_refused_and_what_would_have_to_give_is_named(summaries, records, costs):
    with pytest.raises(NoMethodWithinLimits, match=r"the time limit would have to be 38 s for head; compare cheaper"):
        recommend(summaries(LEVEL, RATIOS), Limits(max_seconds=10))
    with pytest.raises(NoMethodWithinLimits, match="costs were not measured.*without --no-costs"):
        recommend(summaries(LEVEL), Limits(max_memory_bytes=2**40))
    probe = costs(RATIOS, lora=3 * 2**30, cla=2 * 2**30, head=4 * 2**30)
    rows = summarise(records(LEVEL), probe, "lora")
    with pytest.raises(NoMethodWithinLimits) as either:
        recommend(rows, Limits(max_memory_bytes=2**30, max_seconds=90))
    assert "the memory limit would have to be 2.00 GiB for cla" in str(either.value)
    with pytest.raises(NoMethodWithinLimits, match=r"raising one alone is not enough.*lora needs 3.00 GiB of 1.00 GiB"):
        recommend(rows, Limits(max_memory_bytes=2**30, max_seconds=1))
    assert either.value.exit_code == 5


def test_the_least_way_out_that_is_named_does_fit(records, costs):
    rows = summarise(records(LEVEL), costs(RATIOS, lora=3 * 2**30, cla=2 * 2**30, head=4 * 2**30), "lora")
    assert recommend(rows, Limits(max_memory_bytes=2 * 2**30, max_seconds=90)).choice == "cla"


def test_all_runs_failed_is_an_error_with_the_way_out(record):
    rows = summarise([record("lora", 0, status="diverged"), record("fft", 0, status="oom")], None, reference="lora")
    with pytest.raises(TunewiseError, match=r"lora: 1 diverged; fft: 1 oom.*learning rate.*batch size"):
        recommend(rows)
    with pytest.raises(TunewiseError, match="tunewise compare"):
        recommend([])


@pytest.mark.parametrize(
    "wrong", [{"tolerance": math.inf}, {"tolerance": -0.1}, {"max_seconds": 0}, {"max_memory_bytes": -1}]
)
def test_limits_that_mean_nothing_are_refused(wrong):
    with pytest.raises(SpecError):
        Limits(**wrong)


def test_a_smaller_gap_is_offered_to_those_who_want_it(summaries):
    gaps = {"lora": [0.10, 0.11, 0.10], "cla": [0.30, 0.32, 0.31]}
    scores = {"lora": LEVEL["lora"], "cla": LEVEL["cla"]}
    advice = recommend(summaries(scores, RATIOS, gaps))
    assert advice.choice == "cla"
    assert any("lora has 0.103 nats, cla 0.310" in s for s in advice.would_change)


shares = st.integers(0, 40).map(lambda k: k / 40)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(shares, min_size=3, max_size=3), min_size=1, max_size=5),
    tolerance=st.floats(0, 0.1),
)
def test_whatever_the_scores_the_choice_is_near_the_best_and_in_the_pareto_set(summaries, rows, tolerance):
    scores = dict(zip(RATIOS, rows))
    advice = recommend(summaries(scores, RATIOS, items=40), Limits(tolerance=tolerance))
    means = {label: fmean(row) for label, row in scores.items()}
    assert 2 <= len(advice.sentences) <= 3
    assert (len(advice.sentences) == 3) == (advice.evidence == "thin")
    if max(means.values()) <= 0.5:  # the floor
        assert advice.choice is None and advice.runner_up is None
        return
    assert advice.choice is not None and means[advice.choice] > 0.5
    assert max(means.values()) - means[advice.choice] <= max(0.03, tolerance) + 1e-6
    assert advice.choice in advice.pareto
    assert advice.runner_up != advice.choice


@pytest.mark.parametrize("seeds", [3, 10])
def test_a_dear_method_no_better_than_a_cheap_one_is_rarely_chosen(summaries, seeds):
    random = np.random.default_rng(11)
    dear = 0
    for _ in range(100):
        lora, cla = random.binomial(500, 0.85, (2, seeds)) / 500
        advice = recommend(summaries({"lora": lora.tolist(), "cla": cla.tolist()}, RATIOS, items=500))
        dear += advice.choice == "lora"
    assert dear <= 20


def lower_is_better(rows):
    """The same methods on a perplexity: 10 times (2 - score)."""
    return [
        replace(
            row,
            metric="perplexity",
            higher_is_better=False,
            floor=None,
            metric_by_seed={seed: 10 * (2 - v) for seed, v in row.metric_by_seed.items()},
            test_metric=mean_interval([10 * (2 - v) for v in row.metric_by_seed.values()]),
        )
        for row in rows
    ]


def test_of_a_perplexity_the_lowest_is_best(summaries):
    scores = {"head": [0.1, 0.11, 0.1], "lora": [0.9, 0.9, 0.902], "cla": [0.5, 0.52, 0.5]}
    advice = recommend(lower_is_better(summaries(scores, RATIOS)))
    assert (advice.choice, advice.runner_up) == ("lora", "cla")
    assert "the lowest mean test perplexity, 10.99" in advice.answer
    assert "higher by more than noise explains" in advice.answer
    assert "%" not in " ".join(advice.sentences)


def test_one_seed_and_a_tiny_test_set_are_no_ground_for_a_confident_answer(summaries):
    rows = lower_is_better(summaries({"lora": [0.897], "cla": [0.9]}, items=9))
    table = build_table(rows, advice := recommend(rows))
    assert [str(row.cells["metric"].place) for row in table.rows] == ["1=", "1="]
    assert advice.answer == (
        "Use cla for now: it has the lowest mean test perplexity, 11, but is not shown to be better than lora (the "
        "next, lora, is 0.03 higher)."
    )
    assert advice.doubts[:2] == [
        "only 1 seed finished, and at least 3 are needed",
        "the test set has only 9 items, and at least 100 are needed",
    ]
    assert advice.noise.startswith("The test set has 9 items; one seed says nothing")
    assert "A larger test set: at least 100 items instead of 9." in advice.would_change


@pytest.mark.parametrize(("items", "few"), [(99, True), (100, False)])
@pytest.mark.parametrize("turn", [list, lower_is_better])
def test_a_small_test_set_is_a_reason_to_doubt_any_metric(summaries, items, few, turn):
    doubts = recommend(turn(summaries(CLEAR, RATIOS, items=items))).doubts
    assert any("the test set has only 99 items" in doubt for doubt in doubts) == few


def test_a_tolerance_of_a_perplexity_is_in_its_own_unit(summaries):
    scores = {"lora": [0.9, 0.9, 0.902], "cla": [0.5, 0.52, 0.5]}
    rows = lower_is_better(summaries(scores, RATIOS))
    assert recommend(rows, Limits(tolerance=3.5)).choice == "lora"
    advice = recommend(rows, Limits(tolerance=4.0))
    assert advice.choice == "cla"
    assert "above the best" in advice.answer


def test_turning_the_sense_round_turns_no_decision_round(summaries):
    """A score and its mirror image are the same evidence, where no margin depends on the value itself."""
    random = np.random.default_rng(5)
    for _ in range(30):
        scores = {name: random.normal(0.8, 0.02, 6).tolist() for name in ("lora", "cla", "fft")}
        rows = [replace(row, test_items=None, floor=None) for row in summaries(scores, RATIOS)]
        mirrored = lower_is_better(rows)
        tolerance = 0.02  # above the noise of both
        assert (
            recommend(rows, Limits(tolerance=tolerance)).choice
            == recommend(mirrored, Limits(tolerance=10 * tolerance)).choice
        )


def tuned(**rows):
    """A search: `lora=4` trials, `cla=None` given, `fft=(4, "highest")` with its best on an edge."""
    methods = []
    for name, row in rows.items():
        trials, edge = row if isinstance(row, tuple) else (row, None)
        methods.append(
            MethodTuning(
                method=name,
                middle=0.001,
                given=trials is None,
                chosen=0.003,
                edge=edge,
                trials=[
                    Trial(rate=0.001 * 3**i, run="0" * 16, status="done", epochs=3, value=0.5)
                    for i in range(trials or 0)
                ],
            )
        )
    return TuningReport(settings=TuningSpec(), seed=1000, objective="validation loss", methods=methods)


def test_unequal_tuning_budgets_are_named_and_make_the_evidence_thin(summaries):
    rows = summaries(LEVEL, RATIOS)
    equal = recommend(rows, tuning=tuned(head=4, lora=4, cla=4))
    assert equal.evidence == "enough"
    given = recommend(rows, tuning=tuned(head=4, lora=None, cla=4))
    assert given.evidence == "thin"
    assert "tuning budgets are unequal (the learning rate of lora was given, not searched for)" in given.sentences[0]
    assert "trials: head 4, lora 4, cla 2" in recommend(rows, tuning=tuned(head=4, lora=4, cla=2)).sentences[0]
    assert recommend(rows, tuning=tuned(head=None, lora=None, cla=None)).evidence == "enough"


def test_a_search_that_ended_on_its_edge_is_named_as_what_would_change_the_answer(summaries):
    advice = recommend(summaries(LEVEL, RATIOS), tuning=tuned(head=4, lora=(4, "highest"), cla=4))
    assert (
        "A wider search of learning rates: the best of lora, 0.003, is the highest that was tried."
        in advice.would_change
    )


def test_runs_that_are_not_finished_are_named(summaries):
    advice = recommend(summaries(LEVEL, RATIOS, lora={"running": 2}))
    assert "runs are missing (lora: 2 not finished)" in advice.sentences[0]


def test_the_noise_of_a_correlation_is_fishers(summaries):
    rows = [replace(row, metric="matthews") for row in summaries(LEVEL, RATIOS, items=400)]
    (objective,) = objectives_for("metric", rows[1])
    random = np.random.default_rng(0)
    drawn = random.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], (2000, 400))
    spread = np.std([np.corrcoef(pair.T)[0, 1] for pair in drawn])
    assert objective.item_error(replace(rows[1], metric_by_seed={0: 0.9})) == pytest.approx(spread, rel=0.1)
