"""Which method to use: the rule, from the summaries of a comparison; `recommend.py` puts it in words.

The rule
--------
1. *Who takes part.* Methods within the user's limits that finished at every seed. One that diverged or failed
   at a seed is left out (its mean would be over its lucky seeds), unless that is true of all.
2. *The best* is the one with the highest mean test metric. It is not yet the choice: the highest of several
   noisy means is partly luck.
3. *Who is as good.* A method stays in the running if both hold:

   - its mean over common seeds is at most a **margin** below the best's. The margin is the larger of the
     noise of the best and the user's `tolerance`. The noise is the binomial standard error of the best's
     score on so many test items or the standard error of its mean over seeds, whichever is larger, and at
     most 3 points;
   - it is not significantly worse than the best by more than `tolerance` (paired t over seeds, Holm-corrected
     over all pairs, since the best was picked by its score).

   Either alone would mislead. "p > 0.05" from 3 seeds is no evidence of equality: a method 10 points below
   the best with a wide interval would pass. The margin is therefore about means, and is made from the best's
   own noise, so that an erratic method does not widen the door for itself; where even the best is erratic,
   the 3 points hold. And with many seeds a small but certain loss is a loss, though it lies inside the
   margin.
4. *The choice* is the cheapest of these (never one that another beats on all counts): first the step time,
   where intervals of the ratio to the frozen floor don't overlap; then peak memory; then the bytes kept for
   the backward; then trainable parameters; then the higher mean. Time and memory decide only where they are
   known for all.
5. *Evidence* is called thin, with the reasons, for fewer than 3 seeds; runs missing; nothing clearly better
   than training the head alone; a best score near chance; a single method; a choice over a cheaper method
   that is below the margin but not shown to be worse; or a cheap choice that, going by its interval, could
   lose more than half of what the best gains over the baseline (the head alone where it was run, else
   chance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.advise.pareto import cheapest, pareto_methods
from tunewise.advise.statistics import Comparison, against_leader, item_standard_error, standard_error
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError, TunewiseError

# Noise alone never excuses a larger loss than this, however noisy the runs: a convention, not a theorem.
_MOST_GIVEN_AWAY = 0.03
# Two means that differ by the rounding of floats are the same.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What the user can afford. `tolerance` is the test metric (a share: 0.01 is one point) that may be given
    away for a cheaper method; `max_seconds` is for one training run, by the runs' own clock;
    `max_memory_bytes` for the peak of the cost probe; `metric` the test metric that decides, which must be
    the summaries'."""

    max_memory_bytes: int | None = None
    max_seconds: float | None = None
    tolerance: float = 0.0
    metric: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise SpecError(f"tolerance {self.tolerance} must be a share from 0 up to 1; one point is 0.01")
        for key, value in (("max_memory_bytes", self.max_memory_bytes), ("max_seconds", self.max_seconds)):
            if value is not None and not value > 0:
                raise SpecError(f"{key} = {value}: must be above 0")


@dataclass(frozen=True)
class Standing:
    """A method beside the best: mean deficit, corrected comparison, and whether it stays in the running."""

    method: MethodSummary
    deficit: float
    comparison: Comparison
    as_good: bool

    @property
    def is_worse(self) -> bool:
        return self.comparison.verdict == "worse"


@dataclass(frozen=True)
class Decision:
    """What the rule comes to, before it is put in words: `standings` has all entrants but the best."""

    choice: MethodSummary
    best: MethodSummary
    runner_up: MethodSummary | None
    entrants: list[MethodSummary]
    standings: list[Standing]
    pareto: list[str]
    margin: float

    def standing(self, method: MethodSummary | None) -> Standing | None:
        return next((s for s in self.standings if s.method is method), None)


def decide(summaries: Sequence[MethodSummary], limits: Limits) -> Decision:
    """Steps 1 to 4 of the rule.

    Raises `TunewiseError` where no run finished, and `SpecError` where no method fits the limits or
    `limits.metric` is not what the summaries were made on; each says the way out.
    """
    finished = [s for s in summaries if s.test_metric is not None]
    if not finished:
        raise TunewiseError(_nothing_finished(summaries))
    if limits.metric not in (None, finished[0].metric):
        raise SpecError(
            f"the summaries are on {finished[0].metric!r}; make them anew with summarise(..., metric={limits.metric!r})"
        )
    fitting = [s for s in finished if not beyond(s, limits)]
    if not fitting:
        reasons = "; ".join(beyond(s, limits) for s in finished)
        raise SpecError(f"no method fits the limits ({reasons}); raise a limit or compare cheaper methods")
    entrants = _complete(fitting, finished)
    pareto = pareto_methods(entrants, margin(max(entrants, key=mean_of), limits.tolerance))
    best = max((s for s in entrants if s.label in pareto), key=mean_of)
    standings = standings_to(best, entrants, limits.tolerance)
    running = [best, *(s.method for s in standings if s.as_good and s.method.label in pareto)]
    choice = cheapest(running)
    rest = [s for s in running if s is not choice] or [s for s in entrants if s is not choice]
    if choice is not best:
        runner_up: MethodSummary | None = best
    elif len(running) > 1:
        runner_up = cheapest(rest)
    else:
        runner_up = max(rest, key=mean_of, default=None)
    return Decision(choice, best, runner_up, entrants, standings, pareto, margin(best, limits.tolerance))


def margin(best: MethodSummary, tolerance: float) -> float:
    """How far below the best a mean may lie: the best's noise (3 points at most), or a larger `tolerance`."""
    seed_noise = standard_error(list(best.metric_by_seed.values())) or 0.0
    return max(min(max(item_noise_of(best), seed_noise), _MOST_GIVEN_AWAY), tolerance)


def standings_to(best: MethodSummary, entrants: Sequence[MethodSummary], tolerance: float) -> list[Standing]:
    """Each other entrant beside the best."""
    scores = {s.label: s.metric_by_seed for s in entrants}
    lowered = scores | {best.label: {seed: v - tolerance for seed, v in best.metric_by_seed.items()}}
    compared = {c.name: c for c in against_leader(scores, best.label, True, resolution=step_of(best))}
    beyond = against_leader(lowered, best.label, True, resolution=step_of(best))
    allowed = {c.name for c in beyond if c.verdict != "worse"}
    widest = margin(best, tolerance) + ROUNDING
    standings = []
    for method in entrants:
        if method is best:
            continue
        comparison = compared[method.label]
        paired = comparison.difference
        deficit = -paired.mean if paired else mean_of(best) - mean_of(method)
        as_good = method.label in allowed and deficit <= widest
        standings.append(Standing(method, deficit, comparison, as_good))
    return standings


def _complete(fitting: Sequence[MethodSummary], finished: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Those with a finished run at every seed and none lost; all, where nobody has that."""
    seeds = {seed for s in finished for seed in s.seeds}
    complete = [s for s in fitting if set(s.seeds) == seeds and not set(s.missing) - {"running"}]
    return complete or list(fitting)


def beyond(method: MethodSummary, limits: Limits) -> str:
    """Which limit the method breaks, in words; empty where it fits. What isn't known doesn't fit."""
    if limits.max_memory_bytes is not None:
        peak = method.peak_bytes
        if peak is None:
            return f"the peak memory of {method.label} was not measured"
        if peak > limits.max_memory_bytes:
            return f"{method.label} needs {peak / 2**30:.2f} GiB of {limits.max_memory_bytes / 2**30:.2f}"
    if limits.max_seconds is not None and method.seconds and method.seconds.mean > limits.max_seconds:
        return f"{method.label} takes {method.seconds.mean:.0f} s of {limits.max_seconds:.0f}"
    return ""


def _nothing_finished(summaries: Sequence[MethodSummary]) -> str:
    if not summaries:
        return "there is no method to choose from; run `tunewise compare` first"
    ways = {
        "diverged": "lower the learning rate",
        "oom": "lower the batch size or the maximum length",
        "failed": "read the error in its run.json",
        "running": "wait for the runs, or resume them with the same command",
    }
    statuses = {status for s in summaries for status in s.missing}
    lost = "; ".join(f"{s.label}: {lost_runs(s)}" for s in summaries)
    way = ", ".join(ways[status] for status in ways if status in statuses)
    return f"no run finished, so nothing can be recommended ({lost}); {way}"


def mean_of(method: MethodSummary) -> float:
    assert method.test_metric is not None
    return method.test_metric.mean


def item_noise_of(method: MethodSummary) -> float:
    return item_standard_error(mean_of(method), method.test_items) if method.test_items else 0.0


def step_of(method: MethodSummary) -> float:
    """The smallest step by which the test metric can move."""
    return 1 / method.test_items if method.test_items else 0.0


def lost_runs(method: MethodSummary) -> str:
    return ", ".join(f"{count} {status}" for status, count in method.missing.items())
