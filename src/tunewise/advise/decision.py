"""Which method to use: the rule of docs/statistics.md, applied to the summaries of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewise.advise.objectives import Criterion, Objective, objectives_for
from tunewise.advise.pareto import pareto_labels, select_cheapest
from tunewise.advise.statistics import Comparison
from tunewise.advise.summary import MethodSummary
from tunewise.advise.units import format_seconds
from tunewise.errors import NoMethodWithinLimits, SpecError, TunewiseError
from tunewise.number_format import memory

# Two means that differ by the rounding of floats are equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What the user can afford; `max_seconds` is for the training of one run, `max_memory_bytes` for its peak.

    `tolerance`: the loss of test metric that is accepted for a cheaper method (0.01 of a share is one point).
    """

    max_memory_bytes: int | None = None
    max_seconds: float | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SpecError(f"tolerance {self.tolerance} must not be below 0; of an accuracy, one point is 0.01")
        for key, value in (("max_memory_bytes", self.max_memory_bytes), ("max_seconds", self.max_seconds)):
            if value is not None and not value > 0:
                raise SpecError(f"{key} = {value}: must be above 0")


@dataclass(frozen=True)
class Standing:
    """A method beside the best: its deficit in the mean, and whether it counts as equally good."""

    method: MethodSummary
    deficit: float
    comparison: Comparison
    as_good: bool

    @property
    def is_worse(self) -> bool:
        return self.comparison.verdict == "worse"

    @property
    def seeds(self) -> int:
        """Number of common seeds."""
        return self.comparison.difference.n if self.comparison.difference else 0


@dataclass(frozen=True)
class Stage:
    """One objective, applied to the methods that the stage before left; `standings` has all of them but the best."""

    objective: Objective
    best: MethodSummary
    standings: list[Standing]
    margin: float
    remaining: list[MethodSummary]

    def standing(self, method: MethodSummary | None) -> Standing | None:
        return next((s for s in self.standings if s.method is method), None)


@dataclass(frozen=True)
class Decision:
    """The choice and how it came about. The first stage has all candidates.

    A choice that learned nothing is not recommended. It is chosen only where every method learned nothing.
    """

    choice: MethodSummary
    runner_up: MethodSummary | None
    candidates: list[MethodSummary]
    stages: list[Stage]
    pareto: list[str]

    @property
    def first(self) -> Stage:
        return self.stages[0]

    @property
    def best(self) -> MethodSummary:
        return self.first.best


def decide(summaries: Sequence[MethodSummary], limits: Limits, criterion: Criterion = "metric") -> Decision:
    """Apply the rule.

    Raises `TunewiseError` without a finished run, `NoMethodWithinLimits`, and `SpecError` for impossible limits.
    """
    finished = [s for s in summaries if s.test_metric is not None]
    if not finished:
        raise TunewiseError(_nothing_finished(summaries))
    objectives = objectives_for(criterion, finished[0])
    if objectives[0].percent and limits.tolerance >= 1:
        raise SpecError(f"tolerance {limits.tolerance} must be a share from 0 up to 1; one point is 0.01")
    fitting = [s for s in finished if not describe_broken_limits(s, limits)]
    if not fitting:
        raise NoMethodWithinLimits(suggest_limits(finished, limits))
    candidates = _select_complete(fitting, finished)
    first = objectives[0]
    margin = first.margin(max(candidates, key=first.merit), limits.tolerance) if first.key == "metric" else 0.0
    pareto = pareto_labels(candidates, margin)
    stages: list[Stage] = []
    remaining = candidates
    for objective in objectives:
        stages.append(_run_stage(objective, remaining, pareto, limits.tolerance if objective.key == "metric" else 0.0))
        remaining = stages[-1].remaining
    choice = select_cheapest([m for m in remaining if not m.learned_nothing] or remaining)
    return Decision(choice, _select_runner_up(choice, stages, candidates), candidates, stages, pareto)


def _run_stage(objective: Objective, methods: Sequence[MethodSummary], pareto: list[str], tolerance: float) -> Stage:
    best = max((m for m in methods if m.label in pareto), key=objective.merit)
    standings = compute_standings(best, methods, objective, tolerance)
    remaining = [best, *(s.method for s in standings if s.as_good and s.method.label in pareto)]
    return Stage(objective, best, standings, objective.margin(best, tolerance), remaining)


def _select_runner_up(
    choice: MethodSummary, stages: list[Stage], candidates: list[MethodSummary]
) -> MethodSummary | None:
    """The best of the last objective unless it is the choice; else the cheapest of the others that remained."""
    for stage in reversed(stages):
        if stage.best is not choice:
            return stage.best
        if rest := [m for m in stage.remaining if m is not choice]:
            return select_cheapest(rest)
    return max((m for m in candidates if m is not choice), key=stages[0].objective.merit, default=None)


def compute_standings(
    best: MethodSummary, methods: Sequence[MethodSummary], objective: Objective, tolerance: float = 0.0
) -> list[Standing]:
    """Each other method beside the best."""
    comparisons = objective.compare(methods, best)
    not_worse = {name for name, c in objective.compare(methods, best, tolerance).items() if c.verdict != "worse"}
    margin = objective.margin(best, tolerance) + ROUNDING
    sign = 1 if objective.higher_is_better else -1
    standings = []
    for method in methods:
        if method is best:
            continue
        comparison = comparisons[method.label]
        paired = comparison.difference
        deficit = -sign * paired.mean if paired else objective.merit(best) - objective.merit(method)
        as_good = method.label in not_worse and deficit <= margin
        standings.append(Standing(method, deficit, comparison, as_good))
    return standings


def _select_complete(fitting: Sequence[MethodSummary], finished: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Methods with a finished run at every seed and no failed one; all where there is none: a mean over the seeds that
    happened to succeed would flatter."""
    seeds = {seed for s in finished for seed in s.seeds}
    complete = [s for s in fitting if set(s.seeds) == seeds and not set(s.missing) - {"running"}]
    return complete or list(fitting)


_Limit = Literal["memory", "time"]


def describe_broken_limits(method: MethodSummary, limits: Limits) -> str:
    """The limits that the method exceeds; empty where it is within them. An unknown cost exceeds its limit."""
    return "; ".join(_broken_limits(method, limits).values())


def _broken_limits(method: MethodSummary, limits: Limits) -> dict[_Limit, str]:
    broken: dict[_Limit, str] = {}
    if limits.max_memory_bytes is not None:
        peak = method.peak_bytes
        if peak is None:
            broken["memory"] = f"the peak memory of {method.label} was not measured"
        elif peak > limits.max_memory_bytes:
            broken["memory"] = f"{method.label} needs {memory(peak)} of {memory(limits.max_memory_bytes)}"
    if limits.max_seconds is not None:
        time = method.training_seconds
        if time is None:
            broken["time"] = f"the training time of {method.label} is not known"
        elif time > limits.max_seconds:
            broken["time"] = f"{method.label} trains for {format_seconds(time)} of {format_seconds(limits.max_seconds)}"
    return broken


def suggest_limits(finished: Sequence[MethodSummary], limits: Limits) -> str:
    """Message where no method is within the limits: the smallest change of one limit that admits a method."""
    broken = {m.label: _broken_limits(m, limits) for m in finished}
    suggestions = []
    limit: _Limit
    for limit in ("memory", "time"):
        only = [(m, need) for m in finished if set(broken[m.label]) == {limit} and (need := _need(m, limit))]
        if only:
            method, need = min(only, key=lambda pair: pair[1])
            amount = memory(int(need)) if limit == "memory" else format_seconds(need)
            suggestions.append(f"the {limit} limit would have to be {amount} for {method.label}")
    if suggestions:
        return f"no method fits the limits; {', or '.join(suggestions)}; compare cheaper methods, or raise a limit"
    reasons = [reason for m in finished for reason in broken[m.label].values()]
    if all("not measured" in reason for reason in reasons):
        return "costs were not measured, so limits can't be checked; repeat `compare` without --no-costs"
    return f"no method fits the limits, and raising one alone is not enough ({'; '.join(reasons)}); add cheaper ones"


def _need(method: MethodSummary, limit: _Limit) -> float | None:
    return method.peak_bytes if limit == "memory" else method.training_seconds


_ADVICE = {
    "diverged": "lower the learning rate",
    "oom": "lower the batch size or the maximum length",
    "failed": "read the error in its run.json",
    "running": "wait for the runs, or continue them with the same command",
}


def _nothing_finished(summaries: Sequence[MethodSummary]) -> str:
    if not summaries:
        return "there is no method to choose from; run `tunewise compare` first"
    statuses = {status for s in summaries for status in s.missing}
    missing = "; ".join(f"{s.label}: {describe_missing_runs(s)}" for s in summaries)
    advice = ", ".join(_ADVICE[status] for status in _ADVICE if status in statuses)
    return f"no run finished, so nothing can be recommended ({missing}); {advice}"


def describe_missing_runs(method: MethodSummary) -> str:
    """`1 diverged, 2 not finished`."""
    words = {"running": "not finished"}
    return ", ".join(f"{count} {words.get(status, status)}" for status, count in method.missing.items())
