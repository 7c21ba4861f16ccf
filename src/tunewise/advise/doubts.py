"""Why the evidence for a choice is thin (step 5 of the rule in `decision.py`)."""

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
    """The reasons, each a clause; empty where the evidence is enough to act on."""
    return [
        *_too_little(decision, summaries),
        *_erratic(decision),
        *_unequal_budgets(decision, tuning),
        *_nothing_gained(decision, summaries),
        *_given_away(decision, summaries),
    ]


def _too_little(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    found = []
    seeds = min(len(decision.choice.seeds), len(decision.best.seeds))
    if seeds < 3:
        found.append(f"{pluralize(seeds, 'seed')} finished, and 3 are the least")
    if lost := [f"{s.label}: {describe_missing_runs(s)}" for s in summaries if s.missing]:
        found.append(f"runs are missing ({', '.join(lost)})")
    if not decision.standings:
        found.append(f"{decision.choice.label} was compared with no other method")
    return found


def _erratic(decision: Decision) -> list[str]:
    """Methods whose scores over seeds lie so far apart that their means say little: often a learning rate too high."""
    objective = decision.stages[0].objective
    scores = {s.label: objective.values(s) for s in decision.candidates}
    noise = estimate_variances(scores, objective.resolution(decision.best))
    unit = 100 if objective.percent else 1
    found = []
    for name in noise.outliers if noise else ():
        shown = ", ".join(f"{unit * value:.3g}" for value in scores[name].values()) + " %" * objective.percent
        found.append(
            f"{name} scatters far more over seeds than the others ({shown}), so its mean says little and its learning "
            "rate may be too high"
        )
    return found


def _unequal_budgets(decision: Decision, tuning: TuningReport | None) -> list[str]:
    """Rates searched for with other numbers of trials, or given for some and searched for others."""
    if tuning is None:
        return []
    candidates = {s.label for s in decision.candidates}
    rows = [row for row in tuning.methods if row.method in candidates]
    given = [row.method for row in rows if row.given]
    searched = [row for row in rows if not row.given]
    if given and searched:
        return [f"tuning budgets are unequal (the learning rate of {', '.join(given)} was given, not searched for)"]
    if len({len(row.trials) for row in searched}) > 1:
        spent = ", ".join(f"{row.method} {len(row.trials)}" for row in searched)
        return [f"tuning budgets are unequal (trials: {spent})"]
    return []


def _nothing_gained(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    choice, best, found = decision.choice, decision.best, []
    head = _head(summaries)
    if head and decision.standings:
        higher = head.higher_is_better
        scores = {s.label: s.metric_by_seed for s in summaries if s.test_metric}
        step = 1 / head.test_items if head.test_items and head.is_share else 0.0
        better = {
            c.name for c in compare_to_reference(scores, head.label, higher, resolution=step) if c.verdict == "better"
        }
        if choice is not head and choice.label not in better:
            found.append(f"{choice.label} is not clearly better than training the head alone")
        elif choice is head and not better:
            found.append("no method is clearly better than training the head alone")
    chance = best.chance
    if chance is not None and best.test_items and best.test_metric:
        noise = 1.96 * item_standard_error(chance, best.test_items)
        if best.test_metric.mean - chance <= noise:
            score, level = (
                f"{100 * value:.1f} %" if best.is_share else f"{value:.3f}" for value in (best.test_metric.mean, chance)
            )
            is_below = best.test_metric.mean <= chance
            side = "no better than what needs no learning" if is_below else "near chance"
            found.append(f"even the best score ({score}) is {side} ({level})")
    return found


def _given_away(decision: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    """What the choice could cost, going by the intervals; and what it costs over a cheaper method for nothing shown."""
    stage, choice, found = decision.stages[0], decision.choice, []
    objective, best = stage.objective, stage.best
    cheaper = [s for s in stage.standings if not s.as_good and not s.is_worse and describe_saving(s.method, choice)]
    if cheaper:
        at = min(cheaper, key=lambda s: s.deficit)
        side = "below" if objective.higher_is_better else "above"
        count = at.comparison.difference.n if at.comparison.difference else 0
        found.append(
            f"{at.method.label} is cheaper and {objective.distance(at.deficit)} {side} {best.label} on average, too much "
            f"to give away, yet it is not shown to be worse by {count} seed{'' if count == 1 else 's'}"
        )
    if objective.key == "gap":
        at_metric = decision.choice.metric_comparison
        if at_metric and at_metric.verdict == "worse":
            found.append(
                f"{choice.label} scores lower than {choice.reference}: its small gap may come of learning little"
            )
        return found
    head = _head(summaries)
    chosen = stage.standing(choice)
    floor = objective.mean(head) if head and head is not best else best.chance
    name = head.label if head and head is not best else "chance"
    if chosen and floor is not None and choice is not head:
        bound = chosen.comparison.low if objective.higher_is_better else chosen.comparison.high
        gained = (objective.mean(best) - floor) * (1 if objective.higher_is_better else -1)
        if bound is not None and 0 < gained < 2 * abs(bound):
            found.append(
                f"{choice.label} could be up to {objective.distance(abs(bound))} "
                f"{'below' if objective.higher_is_better else 'above'} {best.label}, more than half of what that gains "
                f"over {name}"
            )
    return found


def _head(summaries: Sequence[MethodSummary]) -> MethodSummary | None:
    return next((s for s in summaries if s.name == "head" and s.test_metric), None)
