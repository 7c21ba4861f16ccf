"""What a method is chosen for: the test metric or the generalization gap, with direction, noise and unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tunewise.advise.pooled_variance import compare_to_best
from tunewise.advise.statistics import Comparison, item_standard_error, standard_error
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError, suggest_nearest
from tunewise.number_format import metric_name

Criterion = Literal["metric", "gap", "metric+gap"]
CRITERIA: tuple[Criterion, ...] = ("metric", "gap", "metric+gap")

# Noise never excuses a larger loss than these, however noisy the runs are: conventions, not theorems.
_LARGEST_MARGIN = 0.03  # of a share
_LARGEST_RELATIVE_MARGIN = 0.1  # of the best value, where it is not a share (a gap, a perplexity)

_CORRELATIONS = ("matthews", "pearson", "spearman")


@dataclass(frozen=True)
class Objective:
    """One objective. `percent`: its values are shares, shown in per cent and points."""

    key: Literal["metric", "gap"]
    name: str
    higher_is_better: bool
    percent: bool
    correlation: bool = False

    def values(self, method: MethodSummary) -> dict[int, float]:
        """Values by seed."""
        return method.metric_by_seed if self.key == "metric" else method.gap_by_seed

    def mean(self, method: MethodSummary) -> float:
        return fmean(self.values(method).values())

    def merit(self, method: MethodSummary) -> float:
        """The mean, its sign turned where lower is better."""
        return self.mean(method) if self.higher_is_better else -self.mean(method)

    def item_error(self, method: MethodSummary) -> float:
        """Standard error from the choice of test items; 0 where it does not follow from the mean."""
        if not self.percent or not method.test_items:
            return 0.0
        if self.correlation:  # Fisher's large-sample formula
            return (1 - self.mean(method) ** 2) / math.sqrt(method.test_items)
        return item_standard_error(self.mean(method), method.test_items)

    def resolution(self, method: MethodSummary) -> float:
        """The smallest step of a value; 0 where there is none."""
        return 1 / method.test_items if self.percent and method.test_items else 0.0

    def margin(self, best: MethodSummary, tolerance: float = 0.0) -> float:
        """How far below the best a mean may lie: the best's own noise, limited, or a larger `tolerance`."""
        noise = max(self.item_error(best), standard_error(list(self.values(best).values())) or 0.0)
        limit = _LARGEST_MARGIN if self.percent else _LARGEST_RELATIVE_MARGIN * abs(self.mean(best))
        return max(min(noise, limit), tolerance)

    def compare(
        self, methods: Sequence[MethodSummary], best: MethodSummary, tolerance: float = 0.0
    ) -> dict[str, Comparison]:
        """Each other method against the best, by label; the best is first made worse by `tolerance`."""
        shift = -tolerance if self.higher_is_better else tolerance
        scores = {m.label: self.values(m) for m in methods}
        scores[best.label] = {seed: v + shift for seed, v in self.values(best).items()}
        comparisons = compare_to_best(scores, best.label, self.higher_is_better, resolution=self.resolution(best))
        return {c.name: c for c in comparisons}

    def format_mean(self, method: MethodSummary) -> str:
        """`91.1 %`, `12.3`, `0.103 nats`."""
        value = self.mean(method)
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.3f} nats" if self.key == "gap" else f"{value:.4g}"

    def format_difference(self, difference: float) -> str:
        """`1.2 points`, `0.012 nats`."""
        if self.percent:
            return f"{100 * difference:.1f} points"
        return f"{difference:.3f} nats" if self.key == "gap" else f"{difference:.3g}"


def objectives_for(criterion: Criterion, sample: MethodSummary) -> list[Objective]:
    """The objectives in order; the second is asked of the methods that are as good as the best in the first."""
    name = f"test {metric_name(sample.metric)}"
    is_correlation = sample.metric in _CORRELATIONS
    metric = Objective("metric", name, sample.higher_is_better, sample.is_share, correlation=is_correlation)
    gap = Objective("gap", "generalization gap", higher_is_better=False, percent=False)
    return {"metric": [metric], "gap": [gap], "metric+gap": [metric, gap]}[criterion]


def parse_criterion(text: str) -> tuple[Criterion, str | None]:
    """`accuracy+gap` as ("metric+gap", "accuracy"); `metric`, `gap`, `metric+gap` name no metric. `SpecError` else."""
    parts = [part.strip() for part in text.lower().replace("-", "_").split("+")]
    if parts == ["gap"]:
        return "gap", None
    metric, *rest = parts
    if not metric or metric == "gap" or rest not in ([], ["gap"]):
        raise SpecError(f"criterion {text!r}{suggest_nearest(text, [*CRITERIA, 'accuracy', 'accuracy+gap'])}")
    return ("metric+gap" if rest else "metric"), None if metric == "metric" else metric
