"""Which method to use: the rule, from the summaries of a comparison; `recommend.py` puts it in words.

The rule
--------
1. *Who takes part.* Methods within the user's limits that finished at every seed. One that diverged or failed
   at a seed is left out (its mean would be over its lucky seeds), unless that is true of all.
2. *The best* is the one with the highest mean test metric (the lowest, of a perplexity). It is not yet the
   choice: the highest of several noisy means is partly luck.
3. *Who is as good.* A method stays in the running if both hold:

   - its mean over common seeds is at most a **margin** below the best's. The margin is the larger of the
     noise of the best and the user's `tolerance`. The noise is the binomial standard error of the best's
     score on so many test items or the standard error of its mean over seeds, whichever is larger, and at
     most 3 points;
   - it is not significantly worse than the best by more than `tolerance` (all pairs at once, since the best was
     picked by its score, with the noise pooled over the methods: `pooled_variance.py`).

   Either alone would mislead. "p > 0.05" from 3 seeds is no evidence of equality: a method 10 points below
   the best with a wide interval would pass. The margin is therefore about means, and is decision from the best's
   own noise, so that an outliers method does not widen the door for itself; where even the best is outliers,
   the 3 points hold (a tenth of the value itself, where it is no share). And with many seeds a small but
   certain loss is a loss, though it lies inside the margin.
4. *The choice* is the select_cheapest of these (never one that another beats on all counts): first the step time,
   where intervals of the ratio to the frozen floor don't overlap; then peak memory; then the bytes kept for
   the backward; then trainable parameters; then the higher mean. Time and memory decide only where they are
   known for all.
5. *Evidence* is called thin, with the reasons, for fewer than 3 seeds; runs missing; learning rates found with
   unequal budgets; nothing clearly better than training the head alone; a best score near chance; a single
   method; a choice over a cheaper method that is below the margin but not shown to be worse; or a cheap choice
   that, going by its interval, could lose more than half of what the best gains over the baseline (the head
   alone where it was run, else chance).

Other criteria
--------------
Steps 2 and 3 can be asked of the generalization gap instead ("gap"), the smallest being the best. With
"metric+gap" they are asked of the test metric first and then, of those who are left, of the gap. That is the
criterion of 2606.13767, which judges methods by score and gap together (its Tables 2 and 3 mark the first three
of each) but gives no formula; in this order a small gap that comes of learning little is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewise.advise.objectives import Criterion, Objective, objectives_for
from tunewise.advise.pareto import pareto_labels, select_cheapest
from tunewise.advise.statistics import Comparison
from tunewise.advise.summary import MethodSummary
from tunewise.advise.units import format_bytes, format_seconds
from tunewise.errors import NoMethodWithinLimits, SpecError, TunewiseError

# Two means that differ by the rounding of floats are the same.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What the user can afford. `tolerance` is the test metric that may be given away for a cheaper method (of a share:
    0.01 is one point); `max_seconds` is for the training of one run, optimizer steps times the cost probe's median
    step (the whole run by its own clock where there was no probe); `max_memory_bytes` for the peak of the cost
    probe; `metric` the test metric that decides, which must be the summaries'."""

    max_memory_bytes: int | None = None
    max_seconds: float | None = None
    tolerance: float = 0.0
    metric: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SpecError(f"tolerance {self.tolerance} must not be below 0; of an accuracy, one point is 0.01")
        for key, value in (("max_memory_bytes", self.max_memory_bytes), ("max_seconds", self.max_seconds)):
            if value is not None and not value > 0:
                raise SpecError(f"{key} = {value}: must be above 0")


@dataclass(frozen=True)
class Standing:
    """A method beside the best: how far its mean is behind, corrected comparison, and whether it stays in the
    running."""

    method: MethodSummary
    deficit: float
    comparison: Comparison
    as_good: bool

    @property
    def is_worse(self) -> bool:
        return self.comparison.verdict == "worse"


@dataclass(frozen=True)
class Stage:
    """One objective, asked of the methods that came so far: `standings` has all of them but the best."""

    objective: Objective
    best: MethodSummary
    standings: list[Standing]
    margin: float
    running: list[MethodSummary]

    def standing(self, method: MethodSummary | None) -> Standing | None:
        return next((s for s in self.standings if s.method is method), None)


@dataclass(frozen=True)
class Decision:
    """What the rule comes to, before it is put in words. The first stage has all candidates."""

    choice: MethodSummary
    runner_up: MethodSummary | None
    candidates: list[MethodSummary]
    stages: list[Stage]
    pareto: list[str]

    @property
    def best(self) -> MethodSummary:
        return self.stages[0].best

    @property
    def standings(self) -> list[Standing]:
        return self.stages[0].standings

    @property
    def margin(self) -> float:
        return self.stages[0].margin

    def standing(self, method: MethodSummary | None) -> Standing | None:
        return self.stages[0].standing(method)


def decide(summaries: Sequence[MethodSummary], limits: Limits, criterion: Criterion = "metric") -> Decision:
    """Steps 1 to 4 of the rule.

    Raises `TunewiseError` where no run finished, `NoMethodWithinLimits` where no method fits the limits, and `SpecError` where
    `limits.metric` is not what the summaries were decision on or its tolerance makes no sense; each says the way out.
    """
    finished = [s for s in summaries if s.test_metric is not None]
    if not finished:
        raise TunewiseError(_nothing_finished(summaries))
    if limits.metric not in (None, finished[0].metric):
        raise SpecError(
            f"the summaries are on {finished[0].metric!r}; make them anew with summarise(..., metric={limits.metric!r})"
        )
    objectives = objectives_for(criterion, finished[0])
    if objectives[0].percent and limits.tolerance >= 1:
        raise SpecError(f"tolerance {limits.tolerance} must be a share from 0 up to 1; one point is 0.01")
    fitting = [s for s in finished if not describe_broken_limits(s, limits)]
    if not fitting:
        raise NoMethodWithinLimits(suggest_limits(finished, limits))
    candidates = _complete(fitting, finished)
    first = objectives[0]
    leading = max(candidates, key=first.merit)
    tolerance = limits.tolerance if first.key == "metric" else 0.0
    pareto = pareto_labels(candidates, first.margin(leading, tolerance) if first.key == "metric" else 0.0)
    stages: list[Stage] = []
    field = candidates
    for objective in objectives:
        stages.append(_stage(objective, field, pareto, limits.tolerance if objective.key == "metric" else 0.0))
        field = stages[-1].running
    choice = select_cheapest(field)
    return Decision(choice, _runner_up(choice, stages, candidates), candidates, stages, pareto)


def _stage(objective: Objective, field: Sequence[MethodSummary], pareto: list[str], tolerance: float) -> Stage:
    best = max((m for m in field if m.label in pareto), key=objective.merit)
    standings = compute_standings(best, field, objective, tolerance)
    running = [best, *(s.method for s in standings if s.as_good and s.method.label in pareto)]
    return Stage(objective, best, standings, objective.margin(best, tolerance), running)


def _runner_up(choice: MethodSummary, stages: list[Stage], candidates: list[MethodSummary]) -> MethodSummary | None:
    """The best by the last objective where it was not chosen; else the select_cheapest of those still in the running with the
    choice; else who comes next by the first objective."""
    for stage in reversed(stages):
        if stage.best is not choice:
            return stage.best
        if rest := [m for m in stage.running if m is not choice]:
            return select_cheapest(rest)
    return max((m for m in candidates if m is not choice), key=stages[0].objective.merit, default=None)


def compute_standings(
    best: MethodSummary, field: Sequence[MethodSummary], objective: Objective, tolerance: float = 0.0
) -> list[Standing]:
    """Each other method beside the best."""
    compared = objective.compared(field, best)
    allowed = {name for name, c in objective.compared(field, best, tolerance).items() if c.verdict != "worse"}
    widest = objective.margin(best, tolerance) + ROUNDING
    sign = 1 if objective.higher_is_better else -1
    standings = []
    for method in field:
        if method is best:
            continue
        comparison = compared[method.label]
        paired = comparison.difference
        deficit = -sign * paired.mean if paired else objective.merit(best) - objective.merit(method)
        as_good = method.label in allowed and deficit <= widest
        standings.append(Standing(method, deficit, comparison, as_good))
    return standings


def _complete(fitting: Sequence[MethodSummary], finished: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Those with a finished run at every seed and none lost; all, where nobody has that."""
    seeds = {seed for s in finished for seed in s.seeds}
    complete = [s for s in fitting if set(s.seeds) == seeds and not set(s.missing) - {"running"}]
    return complete or list(fitting)


def describe_broken_limits(method: MethodSummary, limits: Limits) -> str:
    """Which limit the method breaks, in words; empty where it fits. What isn't known doesn't fit."""
    return "; ".join(_broken(method, limits).values())


_Limit = Literal["memory", "time"]


def _broken(method: MethodSummary, limits: Limits) -> dict[_Limit, str]:
    broken: dict[_Limit, str] = {}
    if limits.max_memory_bytes is not None:
        peak = method.peak_bytes
        if peak is None:
            broken["memory"] = f"the peak memory of {method.label} was not measured"
        elif peak > limits.max_memory_bytes:
            broken["memory"] = f"{method.label} needs {format_bytes(peak)} of {format_bytes(limits.max_memory_bytes)}"
    if limits.max_seconds is not None:
        time = method.training_seconds
        if time is None:
            broken["time"] = f"the training time of {method.label} is not known"
        elif time > limits.max_seconds:
            broken["time"] = f"{method.label} trains for {format_seconds(time)} of {format_seconds(limits.max_seconds)}"
    return broken


def suggest_limits(finished: Sequence[MethodSummary], limits: Limits) -> str:
    """Where nothing fits: the least by which one limit would have to give, or both for the method nearest to them."""
    broken = {m.label: _broken(m, limits) for m in finished}
    ways = []
    for limit, shown in (("memory", "the memory limit"), ("time", "the time limit")):
        alone = [(m, need) for m in finished if set(broken[m.label]) == {limit} and (need := _need(m, limit))]
        if alone:
            method, need = min(alone, key=lambda pair: pair[1])
            amount = format_bytes(int(need)) if limit == "memory" else format_seconds(need)
            ways.append(f"{shown} would have to be {amount} for {method.label}")
    if ways:
        return f"no method fits the limits; {', or '.join(ways)}; compare cheaper methods, or raise a limit"
    if all("not measured" in reason for m in finished for reason in broken[m.label].values()):
        return "costs were not measured, so no limit can be held against them; repeat `compare` without --no-costs"
    reasons = "; ".join(f"{reason}" for m in finished for reason in broken[m.label].values())
    return f"no method fits the limits, and raising one alone is not enough ({reasons}); compare cheaper methods"


def _need(method: MethodSummary, limit: str) -> float | None:
    return method.peak_bytes if limit == "memory" else method.training_seconds


def _nothing_finished(summaries: Sequence[MethodSummary]) -> str:
    if not summaries:
        return "there is no method to choose from; run `tunewise compare` first"
    ways = {
        "diverged": "lower the learning rate",
        "oom": "lower the batch size or the maximum length",
        "failed": "read the error in its run.json",
        "running": "wait for the runs, or go on with them by the same command",
    }
    statuses = {status for s in summaries for status in s.missing}
    lost = "; ".join(f"{s.label}: {describe_missing_runs(s)}" for s in summaries)
    way = ", ".join(ways[status] for status in ways if status in statuses)
    return f"no run finished, so nothing can be recommended ({lost}); {way}"


def describe_missing_runs(method: MethodSummary) -> str:
    """`1 diverged, 2 not finished`."""
    words = {"running": "not finished"}
    return ", ".join(f"{count} {words.get(status, status)}" for status, count in method.missing.items())
