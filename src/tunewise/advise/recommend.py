"""Which method to use, in plain sentences, from the summaries of a comparison.

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
     over the comparisons with the best).

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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewise.advise.pareto import cheaper_by, cheapest, pareto_methods
from tunewise.advise.statistics import (
    Comparison,
    against_reference,
    item_standard_error,
    seeds_needed,
    standard_error,
)
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError, TunewiseError

# Noise alone never excuses a larger loss than this, however noisy the runs: a convention, not a theorem.
_MOST_GIVEN_AWAY = 0.03
# Two means that differ by the rounding of floats are the same.
_ROUNDING = 1e-9


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
class Recommendation:
    """`sentences` say what to use and how sure that is; `would_change` what would lead to another answer."""

    choice: str
    sentences: list[str]
    runner_up: str | None
    pareto: list[str]
    would_change: list[str]
    evidence: Literal["enough", "thin"]


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


def recommend(summaries: Sequence[MethodSummary], limits: Limits | None = None) -> Recommendation:
    """The method to use, by the rule above, in words. Raises what `decide` raises."""
    limits = limits or Limits()
    made = decide(summaries, limits)
    doubts = _doubts(made, summaries)
    sentences = [_what(made), _noise(made)]
    if doubts:
        sentences.append(f"The evidence is thin: {'; '.join(doubts)}.")
    return Recommendation(
        choice=made.choice.label,
        sentences=sentences,
        runner_up=made.runner_up.label if made.runner_up else None,
        pareto=made.pareto,
        would_change=[*_more_evidence(made), *_other_aims(made, summaries, limits)],
        evidence="thin" if doubts else "enough",
    )


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
    fitting = [s for s in finished if not _beyond(s, limits)]
    if not fitting:
        reasons = "; ".join(_beyond(s, limits) for s in finished)
        raise SpecError(f"no method fits the limits ({reasons}); raise a limit or compare cheaper methods")
    entrants = _complete(fitting, finished)
    pareto = pareto_methods(entrants, margin(max(entrants, key=_mean), limits.tolerance))
    best = max((s for s in entrants if s.label in pareto), key=_mean)
    standings = standings_to(best, entrants, limits.tolerance)
    running = [best, *(s.method for s in standings if s.as_good and s.method.label in pareto)]
    choice = cheapest(running)
    rest = [s for s in running if s is not choice] or [s for s in entrants if s is not choice]
    if choice is not best:
        runner_up: MethodSummary | None = best
    elif len(running) > 1:
        runner_up = cheapest(rest)
    else:
        runner_up = max(rest, key=_mean, default=None)
    return Decision(choice, best, runner_up, entrants, standings, pareto, margin(best, limits.tolerance))


def margin(best: MethodSummary, tolerance: float) -> float:
    """How far below the best a mean may lie: the best's noise (3 points at most), or a larger `tolerance`."""
    seed_noise = standard_error(list(best.metric_by_seed.values())) or 0.0
    return max(min(max(_item_noise(best), seed_noise), _MOST_GIVEN_AWAY), tolerance)


def standings_to(best: MethodSummary, entrants: Sequence[MethodSummary], tolerance: float) -> list[Standing]:
    """Each other entrant beside the best."""
    scores = {s.label: s.metric_by_seed for s in entrants}
    lowered = scores | {best.label: {seed: v - tolerance for seed, v in best.metric_by_seed.items()}}
    compared = {c.name: c for c in against_reference(scores, best.label, True, resolution=_step(best))}
    beyond = against_reference(lowered, best.label, True, resolution=_step(best))
    allowed = {c.name for c in beyond if c.verdict != "worse"}
    widest = margin(best, tolerance) + _ROUNDING
    standings = []
    for method in entrants:
        if method is best:
            continue
        comparison = compared[method.label]
        paired = comparison.difference
        deficit = -paired.mean if paired else _mean(best) - _mean(method)
        as_good = method.label in allowed and deficit <= widest
        standings.append(Standing(method, deficit, comparison, as_good))
    return standings


def _complete(fitting: Sequence[MethodSummary], finished: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Those with a finished run at every seed and none lost; all, where nobody has that."""
    seeds = {seed for s in finished for seed in s.seeds}
    complete = [s for s in fitting if set(s.seeds) == seeds and not set(s.missing) - {"running"}]
    return complete or list(fitting)


def _beyond(method: MethodSummary, limits: Limits) -> str:
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


# The words.


def _what(made: Decision) -> str:
    choice, best = made.choice, made.best
    score = f"test {choice.metric.replace('_', ' ')}"
    if not made.standings:
        return f"Use {choice.label}, the only method to choose from: its {score} is {_percent(choice)}."
    if at := made.standing(choice):
        the_best = f"the best ({best.label}, {_percent(best)})"
        if at.is_worse:
            distance = f"{_points(at.deficit)} below {the_best}, a real loss, but one within your tolerance"
        elif at.deficit < 0.0005:
            distance = f"level with {the_best}"
        else:
            distance = f"{_points(at.deficit)} below {the_best}, which is within the noise"
        why = cheaper_by(choice, best)
        return (
            f"Use {choice.label}: its mean {score} of {_percent(choice)} is {distance}{', and ' + why if why else ''}."
        )
    start = f"Use {choice.label}: it has the highest mean {score}, {_percent(choice)},"
    close = ", ".join(s.method.label for s in made.standings if s.as_good)
    if close:
        return f"{start} and of those that come as close as the noise ({close}) none is cheaper."
    if all(s.is_worse for s in made.standings):
        return f"{start} and every other method is lower by more than noise explains."
    after = min(made.standings, key=lambda s: s.deficit)
    return (
        f"{start} and no other method comes close enough to be as good (the next, {after.method.label}, is "
        f"{_points(after.deficit)} lower)."
    )


def _noise(made: Decision) -> str:
    best, parts = made.best, []
    if best.test_items:
        parts.append(
            f"the test set has {best.test_items} items, so each score is uncertain by about "
            f"±{_points(1.96 * _item_noise(best))}"
        )
    at = made.standing(made.choice) or made.standing(made.runner_up)
    if len(best.seeds) == 1:
        parts.append("one seed says nothing of the luck in training")
    elif at and at.comparison.low is not None and at.comparison.high is not None:
        pair = f"{at.method.label} and {best.label}"
        if at.is_worse:
            least, most = f"{-100 * at.comparison.high:.1f}", _points(-at.comparison.low)
            size = most if most.startswith(f"{least} ") else f"{least} to {most}"
            parts.append(f"going by {_seeds(at)} the difference between {pair} is {size}")
        else:
            parts.append(
                f"with {_seeds(at)} a true difference of up to {_points(at.comparison.missed or 0)} between "
                f"{pair} could have gone unseen"
            )
    sentence = "; ".join(parts) or "how noisy these scores are is not known"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _doubts(made: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    """Why the evidence is thin (step 5 of the rule); empty where it is not."""
    choice, best = made.choice, made.best
    doubts = []
    seeds = min(len(choice.seeds), len(best.seeds))
    if seeds < 3:
        doubts.append(f"{seeds} seed{'s' if seeds > 1 else ''} finished, and 3 are the least")
    if lost := [f"{s.label}: {_lost(s)}" for s in summaries if s.missing]:
        doubts.append(f"runs are missing ({', '.join(lost)})")
    if not made.standings:
        doubts.append(f"{choice.label} was compared with no other method")
    head = next((s for s in summaries if s.name == "head" and s.test_metric), None)
    if head and made.standings:
        scores = {s.label: s.metric_by_seed for s in summaries if s.test_metric}
        compared = against_reference(scores, head.label, True, resolution=_step(head))
        better = {c.name for c in compared if c.verdict == "better"}
        if choice is not head and choice.label not in better:
            doubts.append(f"{choice.label} is not clearly better than training the head alone")
        elif choice is head and not better:
            doubts.append("no method is clearly better than training the head alone")
    chance = best.chance
    if chance is not None and best.test_items:
        noise = 1.96 * item_standard_error(chance, best.test_items)
        if _mean(best) - chance <= noise:
            doubts.append(f"even the best score is near chance ({100 * chance:.1f} %)")
    cheaper = [s for s in made.standings if not s.as_good and not s.is_worse and cheaper_by(s.method, choice)]
    if cheaper:
        at = min(cheaper, key=lambda s: s.deficit)
        doubts.append(
            f"{at.method.label} is cheaper and {_points(at.deficit)} below {best.label} on average, too much "
            f"to give away, yet it is not shown to be worse by {_seeds(at)}"
        )
    floor, floor_name = (_mean(head), head.label) if head and head is not best else (chance, "chance")
    chosen = made.standing(choice)
    if chosen and chosen.comparison.low is not None and floor is not None and choice is not head:
        most = -chosen.comparison.low
        if 0 < _mean(best) - floor < 2 * most:
            doubts.append(
                f"{choice.label} could be up to {_points(most)} below {best.label}, more than half of what "
                f"that gains over {floor_name}"
            )
    return doubts


def _more_evidence(made: Decision) -> list[str]:
    """What more runs or more test items would settle."""
    best, changes = made.best, []
    unsettled = [s for s in made.standings if not s.is_worse]
    at = made.standing(made.choice) or min(unsettled, key=lambda s: s.deficit, default=None)
    if len(best.seeds) == 1:
        changes.append("More seeds: run at least 3, so that luck in training can be told from merit.")
    elif at and at.comparison.difference and at.comparison.difference.n > 1 and made.margin > 0:
        a, b = best.metric_by_seed, at.method.metric_by_seed
        size = max(made.margin, at.deficit)
        if more := seeds_needed([a[s] - b[s] for s in sorted(a.keys() & b.keys())], size):
            changes.append(
                f"More seeds: about {more} more would show a difference of {_points(size)} between "
                f"{best.label} and {at.method.label}, if there is one."
            )
    if best.test_items and unsettled and _item_noise(best) >= made.margin - _ROUNDING:
        changes.append(
            f"A larger test set: {4 * best.test_items} items instead of {best.test_items} would halve the "
            f"noise of each score."
        )
    return changes


def _other_aims(made: Decision, summaries: Sequence[MethodSummary], limits: Limits) -> list[str]:
    """What other limits, or another aim than the score, would lead to."""
    choice, best, changes = made.choice, made.best, []
    for method in summaries:
        if method.test_metric is None or method in made.entrants:
            continue
        if reason := _beyond(method, limits):
            if _mean(method) > _mean(best):
                changes.append(f"A wider limit: {reason}, and reached {_percent(method)}.")
            continue
        lost = f" ({_lost(method)})" if method.missing else ""
        changes.append(f"The missing runs of {method.label}{lost}: without them it took no part.")
    cheaper = [s for s in made.standings if not s.as_good and cheaper_by(s.method, choice)]
    if cheaper := [s for s in cheaper if s.method.name != "head"]:
        at = min(cheaper, key=lambda s: s.deficit)
        changes.append(
            f"A tolerance of {_points(math.ceil(1000 * at.deficit) / 1000)}: then {at.method.label} would be "
            f"close enough; {cheaper_by(at.method, choice)}."
        )
    gaps = {s.label: s.gap_by_seed for s in made.entrants}
    smaller = {c.name for c in against_reference(gaps, choice.label, False) if c.verdict == "better"}
    for s in (best, *(at.method for at in made.standings if at.as_good)):
        if s.label in smaller and s.gap and choice.gap:
            changes.append(
                f"If the gap between test and train loss matters most: {s.label} has {s.gap.mean:.3f} nats, "
                f"{choice.label} {choice.gap.mean:.3f}."
            )
    if len(made.entrants) > 1 and any(s.cost is None for s in made.entrants):
        changes.append("Measured costs: not every method has them, so trainable parameters stood for cost.")
    return changes


def _nothing_finished(summaries: Sequence[MethodSummary]) -> str:
    if not summaries:
        return "there is no method to choose from; run `tunewise compare` first"
    ways = {
        "diverged": "lower the learning rate",
        "oom": "lower the batch size or the maximum length",
        "failed": "read the error with `tunewise runs show`",
        "running": "wait for the runs, or resume them with the same command",
    }
    statuses = {status for s in summaries for status in s.missing}
    lost = "; ".join(f"{s.label}: {_lost(s)}" for s in summaries)
    way = ", ".join(ways[status] for status in ways if status in statuses)
    return f"no run finished, so nothing can be recommended ({lost}); {way}"


def _mean(method: MethodSummary) -> float:
    assert method.test_metric is not None
    return method.test_metric.mean


def _item_noise(method: MethodSummary) -> float:
    return item_standard_error(_mean(method), method.test_items) if method.test_items else 0.0


def _step(method: MethodSummary) -> float:
    """The smallest step by which the test metric can move."""
    return 1 / method.test_items if method.test_items else 0.0


def _lost(method: MethodSummary) -> str:
    return ", ".join(f"{count} {status}" for status, count in method.missing.items())


def _percent(method: MethodSummary) -> str:
    return f"{100 * _mean(method):.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _seeds(standing: Standing) -> str:
    count = standing.comparison.difference.n if standing.comparison.difference else 0
    return f"{count} seed{'' if count == 1 else 's'}"
