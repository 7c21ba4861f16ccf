"""What a choice is decision for: the test metric or the generalization gap, each with its sense, its noise and its unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tunewise.advise.pooled_variance import compare_to_best
from tunewise.advise.statistics import Comparison, item_standard_error, standard_error
from tunewise.advise.summary import CORRELATIONS, MethodSummary
from tunewise.errors import SpecError, suggest_nearest

Criterion = Literal["metric", "gap", "metric+gap"]
CRITERIA: tuple[Criterion, ...] = ("metric", "gap", "metric+gap")

# Noise alone never excuses a larger loss than these, however noisy the runs: conventions, not theorems.
_MOST_POINTS = 0.03  # of a share
_MOST_SHARE = 0.1  # of the best value itself, where it is no share (a gap, a perplexity)


@dataclass(frozen=True)
class Objective:
    """One thing that is wanted of a method. `percent`: the values are shares, shown as per cent and points."""

    key: Literal["metric", "gap"]
    name: str
    higher_is_better: bool
    percent: bool
    correlation: bool = False

    def values(self, method: MethodSummary) -> dict[int, float]:
        """By seed."""
        return method.metric_by_seed if self.key == "metric" else method.gap_by_seed

    def mean(self, method: MethodSummary) -> float:
        return fmean(self.values(method).values())

    def merit(self, method: MethodSummary) -> float:
        """The mean, turned so that more is better."""
        return self.mean(method) if self.higher_is_better else -self.mean(method)

    def item_error(self, method: MethodSummary) -> float:
        """Standard error from the choice of test items; 0 where it is not known from the mean alone."""
        if not self.percent or not method.test_items:
            return 0.0
        if self.correlation:  # Fisher's large-sample formula
            return (1 - self.mean(method) ** 2) / math.sqrt(method.test_items)
        return item_standard_error(self.mean(method), method.test_items)

    def resolution(self, method: MethodSummary) -> float:
        """The smallest step by which a value can move; 0 where there is none."""
        return 1 / method.test_items if self.percent and method.test_items else 0.0

    def margin(self, best: MethodSummary, tolerance: float = 0.0) -> float:
        """How far behind the best a mean may lie: the best's own noise, within bounds, or a larger `tolerance`."""
        noise = max(self.item_error(best), standard_error(list(self.values(best).values())) or 0.0)
        most = _MOST_POINTS if self.percent else _MOST_SHARE * abs(self.mean(best))
        return max(min(noise, most), tolerance)

    def compared(
        self, methods: Sequence[MethodSummary], leader: MethodSummary, given_away: float = 0.0
    ) -> dict[str, Comparison]:
        """Each other method against the leader, by label, over all pairs; the leader is first set back by
        `given_away`."""
        back = -given_away if self.higher_is_better else given_away
        scores = {m.label: self.values(m) for m in methods}
        scores[leader.label] = {seed: v + back for seed, v in self.values(leader).items()}
        found = compare_to_best(scores, leader.label, self.higher_is_better, resolution=self.resolution(leader))
        return {c.name: c for c in found}

    def shown(self, method: MethodSummary) -> str:
        """The mean as people read it: `91.1 %`, `12.3`, `0.103 nats`."""
        value = self.mean(method)
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.3f} nats" if self.key == "gap" else f"{value:.4g}"

    def distance(self, difference: float) -> str:
        """A difference: `1.2 points`, `0.012 nats`."""
        if self.percent:
            return f"{100 * difference:.1f} points"
        return f"{difference:.3f} nats" if self.key == "gap" else f"{difference:.3g}"


def objectives_for(criterion: Criterion, sample: MethodSummary) -> list[Objective]:
    """What is wanted, in order: with "metric+gap", of those as good as the best in the metric the smallest gap."""
    name = f"test {sample.metric.replace('_', ' ')}"
    related = sample.metric in CORRELATIONS
    metric = Objective("metric", name, sample.higher_is_better, sample.is_share, correlation=related)
    gap = Objective("gap", "generalization gap", higher_is_better=False, percent=False)
    return {"metric": [metric], "gap": [gap], "metric+gap": [metric, gap]}[criterion]


def parse_criterion(text: str) -> tuple[Criterion, str | None]:
    """`accuracy+gap` as ("metric+gap", "accuracy"); `metric`, `gap`, `metric+gap` leave the metric open.

    Raises `SpecError` for anything else than [METRIC][+gap].
    """
    parts = [part.strip() for part in text.lower().replace("-", "_").split("+")]
    if parts == ["gap"]:
        return "gap", None
    metric, *rest = parts
    if not metric or metric == "gap" or rest not in ([], ["gap"]):
        raise SpecError(f"criterion {text!r}{suggest_nearest(text, [*CRITERIA, 'accuracy', 'accuracy+gap'])}")
    return ("metric+gap" if rest else "metric"), None if metric == "metric" else metric
