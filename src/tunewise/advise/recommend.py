"""The decision in plain sentences: what to use, how sure that is, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewise.advise.decision import (
    ROUNDING,
    Decision,
    Limits,
    Stage,
    Standing,
    decide,
    describe_broken_limits,
    describe_missing_runs,
)
from tunewise.advise.doubts import find_doubts
from tunewise.advise.objectives import Criterion
from tunewise.advise.pareto import describe_saving
from tunewise.advise.pooled_variance import compare_to_best, seeds_needed
from tunewise.advise.summary import MethodSummary
from tunewise.store.records import TuningReport


@dataclass(frozen=True)
class Recommendation:
    """`sentences` say what to use and how sure that is; `would_change` what would lead to another answer."""

    choice: str
    sentences: list[str]
    runner_up: str | None
    pareto: list[str]
    would_change: list[str]
    evidence: Literal["enough", "thin"]


def recommend(
    summaries: Sequence[MethodSummary],
    limits: Limits | None = None,
    criterion: Criterion = "metric",
    tuning: TuningReport | None = None,
) -> Recommendation:
    """The method to use, by the rule in `decision.py`, in words. Raises what `decide` raises."""
    limits = limits or Limits()
    decision = decide(summaries, limits, criterion)
    reasons = find_doubts(decision, summaries, tuning)
    sentences = [_what(decision), _noise(decision)]
    if reasons:
        sentences.append(f"The evidence is thin: {'; '.join(reasons)}.")
    return Recommendation(
        choice=decision.choice.label,
        sentences=sentences,
        runner_up=decision.runner_up.label if decision.runner_up else None,
        pareto=decision.pareto,
        would_change=[
            *_more_evidence(decision),
            *_other_aims(decision, summaries, limits),
            *_wider_search(decision, tuning),
        ],
        evidence="thin" if reasons else "enough",
    )


def _what(decision: Decision) -> str:
    first, choice = decision.stages[0], decision.choice
    objective = first.objective
    if not first.standings:
        return f"Use {choice.label}, the only method to choose from: its {objective.name} is {objective.shown(choice)}."
    if at := first.standing(choice):
        reasons = [f"its mean {objective.name} of {objective.shown(choice)} is {_behind(at, first)}"]
        reasons += [_next_reason(stage, choice) for stage in decision.stages[1:]]
        beside = decision.runner_up if len(decision.stages) > 1 and decision.runner_up else first.best
        if why := describe_saving(choice, beside):
            reasons.append(why + (f" than with {beside.label}" if beside is not first.best else ""))
        return f"Use {choice.label}: {_listed(reasons)}."
    extreme = "highest" if objective.higher_is_better else "smallest" if objective.key == "gap" else "lowest"
    start = f"Use {choice.label}: it has the {extreme} mean {objective.name}, {objective.shown(choice)},"
    if len(decision.stages) > 1:
        return f"{start} and {_listed([_next_reason(stage, choice) for stage in decision.stages[1:]])}."
    close = ", ".join(s.method.label for s in first.standings if s.as_good)
    if close:
        return f"{start} and of those that come as close as the noise ({close}) none is cheaper."
    if all(s.is_worse for s in first.standings):
        direction = "lower" if objective.higher_is_better else "larger" if objective.key == "gap" else "higher"
        return f"{start} and every other method is {direction} by more than noise explains."
    after = min(first.standings, key=lambda s: s.deficit)
    side = "lower" if objective.higher_is_better else "more"
    return (
        f"{start} and no other method comes close enough to be as good (the next, {after.method.label}, is "
        f"{objective.distance(after.deficit)} {side})."
    )


def _listed(reasons: list[str]) -> str:
    *first, last = reasons
    return f"{', '.join(first)}, and {last}" if first else last


def _behind(at: Standing, stage: Stage) -> str:
    objective = stage.objective
    the_best = f"the best ({stage.best.label}, {objective.shown(stage.best)})"
    side = "below" if objective.higher_is_better else "above"
    if at.is_worse:
        return f"{objective.distance(at.deficit)} {side} {the_best}, a real loss, but one within your tolerance"
    level = {"metric": 0.0005 if objective.percent else 0.005 * abs(objective.mean(stage.best)), "gap": 0.001}[
        objective.key
    ]
    if at.deficit < level:
        return f"level with {the_best}"
    return f"{objective.distance(at.deficit)} {side} {the_best}, which is within the noise"


def _next_reason(stage: Stage, choice: MethodSummary) -> str:
    """What a later objective adds: of those still in the running the choice is best, or not told apart from the best."""
    objective = stage.objective
    if not stage.standings:
        return f"no other method is as good, so that its {objective.name} ({objective.shown(choice)}) decides nothing"
    among = f"of the {len(stage.standings) + 1} methods that are as good"
    if choice is stage.best:
        return f"{among} it has the smallest {objective.name}, {objective.shown(choice)}"
    at = stage.standing(choice)
    assert at is not None
    return f"{among} its {objective.name} of {objective.shown(choice)} is {_behind(at, stage).replace('best', 'smallest', 1)}"


def _noise(decision: Decision) -> str:
    stage = decision.stages[0]
    objective, best, parts = stage.objective, stage.best, []
    if best.test_items and objective.item_error(best):
        parts.append(
            f"the test set has {best.test_items} items, so each score is uncertain by about "
            f"±{objective.distance(1.96 * objective.item_error(best))}"
        )
    at = stage.standing(decision.choice) or stage.standing(decision.runner_up)
    if len(best.seeds) == 1:
        parts.append("one seed says nothing of the luck in training")
    elif at and at.comparison.low is not None and at.comparison.high is not None:
        pair = f"{at.method.label} and {best.label}"
        if at.is_worse:
            ends = sorted((abs(at.comparison.low), abs(at.comparison.high)))
            least, most = objective.distance(ends[0]).partition(" ")[0], objective.distance(ends[1])
            size = most if most.startswith(f"{least} ") else f"{least} to {most}"
            parts.append(f"going by {seeds_of(at)} the difference between {pair} is {size}")
        else:
            parts.append(
                f"with {seeds_of(at)} a true difference of up to {objective.distance(at.comparison.missed or 0)} between "
                f"{pair} could have gone unseen"
            )
    sentence = "; ".join(parts) or "how noisy these scores are is not known"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _more_evidence(decision: Decision) -> list[str]:
    """What more runs or more test items would settle."""
    stage = decision.stages[0]
    objective, best, changes = stage.objective, stage.best, []
    unsettled = [s for s in stage.standings if not s.is_worse]
    at = stage.standing(decision.choice) or min(unsettled, key=lambda s: s.deficit, default=None)
    if len(best.seeds) == 1:
        changes.append("More seeds: run at least 3, so that luck in training can be told from merit.")
    elif at and at.comparison.difference and at.comparison.difference.n > 1 and stage.margin > 0:
        size = max(stage.margin, at.deficit)
        scores = {s.label: objective.values(s) for s in decision.candidates}
        if more := seeds_needed(scores, best.label, at.method.label, size, objective.resolution(best)):
            changes.append(
                f"More seeds: about {more} more would show a difference of {objective.distance(size)} between "
                f"{best.label} and {at.method.label}, if there is one (four times in five)."
            )
    if best.test_items and unsettled and 0 < stage.margin - ROUNDING <= objective.item_error(best):
        changes.append(
            f"A larger test set: {4 * best.test_items} items instead of {best.test_items} would halve the "
            f"noise of each score."
        )
    return changes


def _other_aims(decision: Decision, summaries: Sequence[MethodSummary], limits: Limits) -> list[str]:
    """What other limits, or another aim than the score, would lead to."""
    stage, choice, changes = decision.stages[0], decision.choice, []
    objective, best = stage.objective, stage.best
    for method in summaries:
        if method.test_metric is None or method in decision.candidates:
            continue
        if reason := describe_broken_limits(method, limits):
            if objective.merit(method) > objective.merit(best):
                changes.append(f"A wider limit: {reason}, and reached {objective.shown(method)}.")
            continue
        lost = f" ({describe_missing_runs(method)})" if method.missing else ""
        changes.append(f"The missing runs of {method.label}{lost}: without them it took no part.")
    cheaper = [s for s in stage.standings if not s.as_good and describe_saving(s.method, choice)]
    cheaper = [s for s in cheaper if s.method.name != "head"]
    if cheaper and objective.key == "metric":
        at = min(cheaper, key=lambda s: s.deficit)
        enough = math.ceil(1000 * at.deficit) / 1000 if objective.percent else at.deficit
        changes.append(
            f"A tolerance of {objective.distance(enough)}: then {at.method.label} would be close enough; "
            f"{describe_saving(at.method, choice)}."
        )
    if objective.key == "metric" and len(decision.stages) == 1:
        changes += _smaller_gaps(decision)
    if len(decision.candidates) > 1 and any(s.cost is None for s in decision.candidates):
        changes.append("Measured costs: not every method has them, so trainable parameters stood for cost.")
    return changes


def _smaller_gaps(decision: Decision) -> list[str]:
    """Of the methods as good as the best, those shown to have a smaller gap than the choice."""
    choice, stage = decision.choice, decision.stages[0]
    gaps = {s.label: s.gap_by_seed for s in decision.candidates}
    smaller = {c.name for c in compare_to_best(gaps, choice.label, False) if c.verdict == "better"}
    as_good = (stage.best, *(at.method for at in stage.standings if at.as_good))
    return [
        f"If the gap between test and train loss matters most: {s.label} has {s.gap.mean:.3f} nats, "
        f"{choice.label} {choice.gap.mean:.3f}."
        for s in as_good
        if s.label in smaller and s.gap and choice.gap
    ]


def _wider_search(decision: Decision, tuning: TuningReport | None) -> list[str]:
    """Learning rates that were not searched for, or whose search ended on its edge, of those who came in question."""
    named = {decision.choice.label, decision.best.label, *([decision.runner_up.label] if decision.runner_up else [])}
    if tuning is None:
        return []
    return [
        f"A wider search of learning rates: the best of {row.method}, {row.chosen:g}, is the {row.edge} that was tried."
        for row in tuning.methods
        if row.edge and row.method in named
    ]


def seeds_of(standing: Standing) -> str:
    """`3 seeds`."""
    count = standing.comparison.difference.n if standing.comparison.difference else 0
    return f"{count} seed{'' if count == 1 else 's'}"
