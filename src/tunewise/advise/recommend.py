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
from tunewise.advise.doubts import FEWEST_ITEMS, find_doubts
from tunewise.advise.objectives import Criterion
from tunewise.advise.pareto import describe_saving
from tunewise.advise.pooled_variance import compare_to_best, seeds_needed
from tunewise.advise.summary import MethodSummary
from tunewise.store.records import TuningReport
from tunewise.text_format import pluralize


@dataclass(frozen=True)
class Recommendation:
    """`answer` says what to use, `noise` and `doubts` how sure that is, `would_change` what would change it.

    `choice` is None where nothing was learned.
    """

    choice: str | None
    answer: str
    noise: str
    doubts: list[str]
    runner_up: str | None
    pareto: list[str]
    would_change: list[str]

    @property
    def evidence(self) -> Literal["enough", "thin"]:
        return "thin" if self.doubts else "enough"

    @property
    def sentences(self) -> list[str]:
        """All of it; reasons to doubt the answer come before it."""
        thin = [f"The evidence is thin: {'; '.join(self.doubts)}."] if self.doubts else []
        return [*thin, self.answer, self.noise]


def recommend(
    summaries: Sequence[MethodSummary],
    limits: Limits | None = None,
    criterion: Criterion = "metric",
    tuning: TuningReport | None = None,
) -> Recommendation:
    """The method to use, in words. Raises what `decide` raises."""
    limits = limits or Limits()
    decision = decide(summaries, limits, criterion)
    doubts = find_doubts(decision, summaries, tuning)
    if decision.choice.learned_nothing:
        return Recommendation(
            choice=None,
            answer="No method is recommended: train longer, raise the learning rate, or check the data and its labels.",
            noise=_describe_noise(decision),
            doubts=doubts,
            runner_up=None,
            pareto=decision.pareto,
            would_change=[*_other_limits(decision, summaries, limits), *_wider_search(decision, tuning)],
        )
    return Recommendation(
        choice=decision.choice.label,
        answer=_describe_choice(decision),
        noise=_describe_noise(decision),
        doubts=doubts,
        runner_up=decision.runner_up.label if decision.runner_up else None,
        pareto=decision.pareto,
        would_change=[
            *_more_evidence(decision),
            *_other_limits(decision, summaries, limits),
            *_larger_tolerance(decision),
            *_smaller_gaps(decision),
            *_missing_costs(decision),
            *_wider_search(decision, tuning),
        ],
    )


def _describe_choice(decision: Decision) -> str:
    first, choice = decision.first, decision.choice
    objective, later = first.objective, decision.stages[1:]
    mean = objective.format_mean(choice)
    use = f"Use {choice.label}" + " for now" * (len(first.best.seeds) == 1)
    if not first.standings:
        return f"{use}, the only method to choose from: its {objective.name} is {mean}."
    if at := first.standing(choice):
        reasons = [f"its mean {objective.name} of {mean} is {_describe_deficit(at, first)}"]
        reasons += [_describe_later_stage(stage, choice) for stage in later]
        other = decision.runner_up if later and decision.runner_up else first.best
        if saving := describe_saving(choice, other):
            reasons.append(saving + (f" than with {other.label}" if other is not first.best else ""))
        return f"{use}: {_join(reasons)}."
    extreme = "highest" if objective.higher_is_better else "lowest"
    worse = "lower" if objective.higher_is_better else "higher"
    start = f"{use}: it has the {extreme} mean {objective.name}, {mean},"
    if later:
        return f"{start} and {_join([_describe_later_stage(stage, choice) for stage in later])}."
    if close := ", ".join(s.method.label for s in first.standings if s.as_good):
        return f"{start} and none of the methods within the noise ({close}) is cheaper."
    if all(s.is_worse for s in first.standings):
        return f"{start} and every other method is {worse} by more than noise explains."
    unsettled = sorted((s for s in first.standings if not s.is_worse), key=lambda s: s.deficit)
    return (
        f"{start} but is not shown to be better than {', '.join(s.method.label for s in unsettled)} (the next, "
        f"{unsettled[0].method.label}, is {objective.format_difference(unsettled[0].deficit)} {worse})."
    )


def _join(reasons: list[str]) -> str:
    *first, last = reasons
    return f"{', '.join(first)}, and {last}" if first else last


def _describe_deficit(at: Standing, stage: Stage, best: str = "best") -> str:
    objective = stage.objective
    the_best = f"the {best} ({stage.best.label}, {objective.format_mean(stage.best)})"
    side = "below" if objective.higher_is_better else "above"
    if at.is_worse:
        return (
            f"{objective.format_difference(at.deficit)} {side} {the_best}, a real loss, but one within your tolerance"
        )
    equal = {"metric": 0.0005 if objective.percent else 0.005 * abs(objective.mean(stage.best)), "gap": 0.001}
    if at.deficit < equal[objective.key]:
        return f"equal to {the_best}"
    return f"{objective.format_difference(at.deficit)} {side} {the_best}, which is within the noise"


def _describe_later_stage(stage: Stage, choice: MethodSummary) -> str:
    """What a later objective adds: of the methods that remained, the choice is the best or within its noise."""
    objective, mean = stage.objective, stage.objective.format_mean(choice)
    at = stage.standing(choice)
    if not stage.standings:
        return f"no other method is as good, so its {objective.name} ({mean}) decides nothing"
    start = f"of the {len(stage.standings) + 1} methods that are as good"
    if at is None:
        return f"{start} it has the smallest {objective.name}, {mean}"
    return f"{start} its {objective.name} of {mean} is {_describe_deficit(at, stage, 'smallest')}"


def _describe_noise(decision: Decision) -> str:
    stage = decision.first
    objective, best, parts = stage.objective, stage.best, []
    if best.test_items:
        size, error = f"the test set has {pluralize(best.test_items, 'item')}", objective.item_error(best)
        uncertain = f", so each score is uncertain by about ±{objective.format_difference(1.96 * error)}"
        parts.append(size + (uncertain if error else ""))
    at = stage.standing(decision.choice) or stage.standing(decision.runner_up)
    if len(best.seeds) == 1:
        parts.append("one seed says nothing about the variation between seeds")
    elif at and at.comparison.low is not None and at.comparison.high is not None:
        pair, seeds = f"{at.method.label} and {best.label}", pluralize(at.seeds, "seed")
        if at.is_worse:
            ends = sorted((abs(at.comparison.low), abs(at.comparison.high)))
            low, high = objective.format_difference(ends[0]).partition(" ")[0], objective.format_difference(ends[1])
            size = high if high.startswith(f"{low} ") else f"{low} to {high}"
            parts.append(f"with {seeds} the difference between {pair} is {size}")
        else:
            missed = objective.format_difference(at.comparison.missed or 0)
            parts.append(f"with {seeds} a true difference of up to {missed} between {pair} can go unseen")
    sentence = "; ".join(parts) or "how noisy these scores are is not known"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _more_evidence(decision: Decision) -> list[str]:
    """What more seeds or more test items would settle."""
    stage = decision.first
    objective, best, changes = stage.objective, stage.best, []
    unsettled = [s for s in stage.standings if not s.is_worse]
    at = stage.standing(decision.choice) or min(unsettled, key=lambda s: s.deficit, default=None)
    if len(best.seeds) == 1:
        changes.append("More seeds: run at least 3; a single seed can be lucky.")
    elif at and at.seeds > 1 and stage.margin > 0:
        size = max(stage.margin, at.deficit)
        scores = {s.label: objective.values(s) for s in decision.candidates}
        if more := seeds_needed(scores, best.label, at.method.label, size, objective.resolution(best)):
            changes.append(
                f"More seeds: about {more} more would show a difference of {objective.format_difference(size)} between "
                f"{best.label} and {at.method.label}, if there is one (four times in five)."
            )
    if best.test_items and unsettled and 0 < stage.margin - ROUNDING <= objective.item_error(best):
        changes.append(
            f"A larger test set: {4 * best.test_items} items instead of {best.test_items} would halve the "
            f"noise of each score."
        )
    elif best.test_items and best.test_items < FEWEST_ITEMS:
        changes.append(f"A larger test set: at least {FEWEST_ITEMS} items instead of {best.test_items}.")
    return changes


def _other_limits(decision: Decision, summaries: Sequence[MethodSummary], limits: Limits) -> list[str]:
    """Methods that were no candidates for their cost, or for missing runs."""
    objective, changes = decision.first.objective, []
    for method in summaries:
        if method.test_metric is None or method in decision.candidates:
            continue
        if reason := describe_broken_limits(method, limits):
            if objective.merit(method) > objective.merit(decision.best):
                changes.append(f"A wider limit: {reason}, and reached {objective.format_mean(method)}.")
            continue
        missing = f" ({describe_missing_runs(method)})" if method.missing else ""
        changes.append(f"The missing runs of {method.label}{missing}: it was left out without them.")
    return changes


def _larger_tolerance(decision: Decision) -> list[str]:
    stage, choice = decision.first, decision.choice
    objective = stage.objective
    cheaper = [
        s for s in stage.standings if not s.as_good and describe_saving(s.method, choice) and s.method.name != "head"
    ]
    if not cheaper or objective.key != "metric":
        return []
    at = min(cheaper, key=lambda s: s.deficit)
    enough = math.ceil(1000 * at.deficit) / 1000 if objective.percent else at.deficit
    return [
        f"A tolerance of {objective.format_difference(enough)}: then {at.method.label} would be close enough; "
        f"{describe_saving(at.method, choice)}."
    ]


def _smaller_gaps(decision: Decision) -> list[str]:
    """Of the methods as good as the best, those with a significantly smaller gap than the choice."""
    choice, stage = decision.choice, decision.first
    if stage.objective.key != "metric" or len(decision.stages) > 1:
        return []
    gaps = {s.label: s.gap_by_seed for s in decision.candidates}
    smaller = {c.name for c in compare_to_best(gaps, choice.label, False) if c.verdict == "better"}
    as_good = (stage.best, *(at.method for at in stage.standings if at.as_good))
    return [
        f"If the gap between test and train loss matters most: {s.label} has {s.gap.mean:.3f} nats, "
        f"{choice.label} {choice.gap.mean:.3f}."
        for s in as_good
        if s.label in smaller and s.gap and choice.gap
    ]


def _missing_costs(decision: Decision) -> list[str]:
    if len(decision.candidates) > 1 and any(s.cost is None for s in decision.candidates):
        return ["Measured costs: some methods have none, so the number of trainable parameters was used instead."]
    return []


def _wider_search(decision: Decision, tuning: TuningReport | None) -> list[str]:
    """Methods near the choice with their best learning rate at an end of the searched range."""
    considered = {m.label for m in (decision.choice, decision.best, decision.runner_up) if m}
    return [
        f"A wider search of learning rates: the best of {row.method}, {row.chosen:g}, is the {row.edge} that was tried."
        for row in (tuning.methods if tuning else ())
        if row.edge and row.method in considered
    ]
