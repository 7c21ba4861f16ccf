"""Reasons why the evidence for a choice is thin (step 5 of the rule in docs/statistics.md)."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.advise.decision import Decision, describe_missing_runs
from tunewise.advise.marks import MARKS
from tunewise.advise.pareto import describe_saving
from tunewise.advise.statistics import compare_to_reference, item_standard_error
from tunewise.advise.summary import MethodSummary
from tunewise.store.records import TuningReport
from tunewise.text_format import pluralize

FEWEST_ITEMS = 100
"""A smaller test set is a reason to doubt any score: a convention; the 95 % interval of an accuracy is ±10 points."""


def find_doubts(decision: Decision, summaries: Sequence[MethodSummary], tuning: TuningReport | None) -> list[str]:
    """The reasons, each a clause; empty where the evidence is enough."""
    of_the_runs = [
        *_near_floor(decision),
        *_marked(decision),
        *_too_few_runs(decision, summaries),
        *_too_few_items(decision),
        *_unequal_budgets(decision, tuning),
    ]
    if decision.choice.learned_nothing:
        return of_the_runs
    return [
        *of_the_runs,
        *_not_better_than_head(decision, summaries),
        *_cheaper_but_untested(decision),
        *(
            _large_possible_loss(decision, summaries)
            if decision.first.objective.key == "metric"
            else _low_score(decision)
        ),
    ]


def _marked(decision: Decision) -> list[str]:
    """A clause for each mark that a candidate bears."""
    reasons = []
    unit, sign = (100, " %") if decision.best.is_share else (1, "")
    for mark in MARKS:
        if mark.key == "learned_nothing" and all(m.learned_nothing for m in decision.candidates):
            continue  # said already, of all methods
        names = []
        for method in decision.candidates:
            if not getattr(method, mark.key):
                continue
            scores = ", ".join(f"{unit * score:.3g}" for score in method.metric_by_seed.values())
            names.append(f"{method.label} ({scores}{sign})" if mark.key == "disagrees" else method.label)
        if names:
            reasons.append(mark.doubt.format(methods=", ".join(names)))
    return reasons


def _too_few_runs(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    reasons = []
    seeds = min(len(decision.choice.seeds), len(decision.best.seeds))
    if seeds < 3:
        reasons.append(f"only {pluralize(seeds, 'seed')} finished, and at least 3 are needed")
    if missing := [f"{s.label}: {describe_missing_runs(s)}" for s in summaries if s.missing]:
        reasons.append(f"runs are missing ({', '.join(missing)})")
    if not decision.first.standings:
        reasons.append(f"{decision.choice.label} was compared with no other method")
    return reasons


def _too_few_items(decision: Decision) -> list[str]:
    items = decision.best.test_items
    if not items or items >= FEWEST_ITEMS:
        return []
    return [f"the test set has only {pluralize(items, 'item')}, and at least {FEWEST_ITEMS} are needed"]


def _unequal_budgets(decision: Decision, tuning: TuningReport | None) -> list[str]:
    if tuning is None:
        return []
    candidates = {s.label for s in decision.candidates}
    rows = [row for row in tuning.methods if row.method in candidates]
    given = [row.method for row in rows if row.given]
    searched = [row for row in rows if not row.given]
    if given and searched:
        return [f"tuning budgets are unequal (the learning rate of {', '.join(given)} was given, not searched for)"]
    if len({len(row.trials) for row in searched}) > 1:
        trials = ", ".join(f"{row.method} {len(row.trials)}" for row in searched)
        return [f"tuning budgets are unequal (trials: {trials})"]
    return []


def _not_better_than_head(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    choice, head = decision.choice, _find_head(summaries)
    if head is None or not decision.first.standings:
        return []
    scores = {s.label: s.metric_by_seed for s in summaries if s.test_metric}
    step = 1 / head.test_items if head.test_items and head.is_share else 0.0
    comparisons = compare_to_reference(scores, head.label, head.higher_is_better, resolution=step)
    better = {c.name for c in comparisons if c.verdict == "better"}
    if choice is not head and choice.label not in better:
        return [f"{choice.label} is not clearly better than training the head alone"]
    if choice is head and not better:
        return ["no method is clearly better than training the head alone"]
    return []


def _near_floor(decision: Decision) -> list[str]:
    best = max(decision.candidates, key=lambda method: method.merit)
    floor = best.floor
    if floor is None or not best.test_items or not best.test_metric:
        return []
    mean = best.test_metric.mean
    score, level = (f"{100 * value:.1f} %" if best.is_share else f"{value:.4g}" for value in (mean, floor.score))
    what = f"{level}, the {floor.of}"
    if best.learned_nothing:
        return [f"nothing was learned: even the best score ({score}) is no better than without learning ({what})"]
    if not best.is_share or mean - floor.score > 1.96 * item_standard_error(floor.score, best.test_items):
        return []
    return [f"even the best score ({score}) is near that without learning ({what})"]


def _cheaper_but_untested(decision: Decision) -> list[str]:
    """A cheaper method below the margin that is not shown to be worse."""
    stage = decision.first
    objective = stage.objective
    cheaper = [
        s for s in stage.standings if not s.as_good and not s.is_worse and describe_saving(s.method, decision.choice)
    ]
    if not cheaper:
        return []
    nearest = min(cheaper, key=lambda s: s.deficit)
    side = "below" if objective.higher_is_better else "above"
    return [
        f"{nearest.method.label} is cheaper and on average {objective.format_difference(nearest.deficit)} {side} "
        f"{stage.best.label}; this is more than the margin, but with {pluralize(nearest.seeds, 'seed')} it is not "
        f"shown to be worse"
    ]


def _low_score(decision: Decision) -> list[str]:
    choice, compared = decision.choice, decision.choice.metric_comparison
    if compared is None or compared.verdict != "worse":
        return []
    return [f"{choice.label} scores lower than {choice.reference}: a method that learns little has a small gap too"]


def _large_possible_loss(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    """A choice that could lose more than half of what the best gains over the head, or over chance."""
    stage, choice = decision.first, decision.choice
    objective, best, head = stage.objective, stage.best, _find_head(summaries)
    has_head = head is not None and head is not best
    floor = best.floor.score if best.floor else None
    baseline = objective.mean(head) if head and has_head else floor
    chosen = stage.standing(choice)
    if chosen is None or baseline is None or choice is head:
        return []
    bound = chosen.comparison.low if objective.higher_is_better else chosen.comparison.high
    gained = (objective.mean(best) - baseline) * (1 if objective.higher_is_better else -1)
    if bound is None or not 0 < gained < 2 * abs(bound):
        return []
    return [
        f"{choice.label} could be up to {objective.format_difference(abs(bound))} "
        f"{'below' if objective.higher_is_better else 'above'} {best.label}, more than half of what {best.label} "
        f"gains over {head.label if head and has_head else 'no learning'}"
    ]


def _find_head(summaries: Sequence[MethodSummary]) -> MethodSummary | None:
    return next((s for s in summaries if s.name == "head" and s.test_metric), None)
