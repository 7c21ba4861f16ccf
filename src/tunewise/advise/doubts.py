"""Reasons why the evidence for a choice is thin (step 5 of the rule in docs/statistics.md)."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.advise.decision import Decision, describe_missing_runs
from tunewise.advise.pareto import describe_saving
from tunewise.advise.pooled_variance import estimate_variances
from tunewise.advise.statistics import compare_to_reference, item_standard_error
from tunewise.advise.summary import MethodSummary
from tunewise.store.records import TuningReport
from tunewise.text_format import pluralize


def find_doubts(decision: Decision, summaries: Sequence[MethodSummary], tuning: TuningReport | None) -> list[str]:
    """The reasons, each a clause; empty where the evidence is enough."""
    return [
        *_near_floor(decision),
        *_untuned(decision, tuning),
        *_stopped_too_early(decision),
        *_too_few_runs(decision, summaries),
        *_erratic_methods(decision),
        *_unequal_budgets(decision, tuning),
        *_not_better_than_head(decision, summaries),
        *_cheaper_but_untested(decision),
        *(
            _large_possible_loss(decision, summaries)
            if decision.first.objective.key == "metric"
            else _low_score(decision)
        ),
    ]


def _untuned(decision: Decision, tuning: TuningReport | None) -> list[str]:
    """Rates that were neither given nor searched for, and rates at an edge of the search: the order of the methods may
    be that of their rates."""
    labels = {s.label for s in decision.candidates}
    reasons = []
    if defaults := [s.label for s in decision.candidates if s.untuned]:
        reasons.append(
            f"the learning rate of {', '.join(defaults)} is an untuned default, so differences may be those of the "
            "rates (--tune 4 searches for them)"
        )
    if edges := [row.method for row in (tuning.methods if tuning else ()) if row.edge and row.method in labels]:
        reasons.append(f"the best learning rate of {', '.join(edges)} lies at an edge of those that were tried")
    return reasons


def _stopped_too_early(decision: Decision) -> list[str]:
    if early := [s.label for s in decision.candidates if s.still_improving]:
        return [f"the last epoch was the best one of {', '.join(early)}: train longer (--epochs)"]
    return []


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


def _erratic_methods(decision: Decision) -> list[str]:
    """Methods with a much larger variance than the others: often the learning rate is too high."""
    objective = decision.first.objective
    scores = {s.label: objective.values(s) for s in decision.candidates}
    variances = estimate_variances(scores, objective.resolution(decision.best))
    unit = 100 if objective.percent else 1
    reasons = []
    for name in variances.outliers if variances else ():
        shown = ", ".join(f"{unit * value:.3g}" for value in scores[name].values()) + " %" * objective.percent
        reasons.append(
            f"{name} varies far more over seeds than the others ({shown}), so its mean says little and its learning "
            "rate may be too high"
        )
    return reasons


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
    best, floor = decision.best, decision.best.floor
    if floor is None or not best.test_items or not best.test_metric:
        return []
    mean = best.test_metric.mean
    score, level = (f"{100 * value:.1f} %" if best.is_share else f"{value:.3f}" for value in (mean, floor))
    if best.learned_nothing:
        return [f"nothing was learned: even the best score ({score}) is no better than a constant prediction ({level})"]
    if not best.is_share or mean - floor > 1.96 * item_standard_error(floor, best.test_items):
        return []
    return [f"even the best score ({score}) is near that of a constant prediction ({level})"]


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
    baseline = objective.mean(head) if head and has_head else best.floor
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
        f"gains over {head.label if head and has_head else 'a constant prediction'}"
    ]


def _find_head(summaries: Sequence[MethodSummary]) -> MethodSummary | None:
    return next((s for s in summaries if s.name == "head" and s.test_metric), None)
