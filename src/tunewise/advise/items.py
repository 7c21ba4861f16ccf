"""Comparison of two methods over test items: both answer the same items at every seed. docs/statistics.md explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tunewise.advise.statistics import normal_quantile

Classes = NDArray[np.int64]
Confusion = NDArray[np.float64]


@dataclass(frozen=True)
class ItemComparison:
    """Difference of the metric (a - b, mean over `seeds` common seeds) on `n` items, its 95 % interval over items, the
    two-sided p of "no difference", and the test that was used."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    seeds: int
    test: str

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Predictions:
    """Predicted and true class of each test item in one run. Both (items,)."""

    predicted: Classes
    labels: Classes

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.predicted == self.labels


@dataclass(frozen=True)
class ItemScores:
    """What each test item of one run scored by the main metric, (items,), and the items' texts."""

    scores: NDArray[np.float64]
    items: Sequence[str]


def compare_item_scores(a: Mapping[int, ItemScores], b: Mapping[int, ItemScores]) -> ItemComparison | None:
    """a - b over common seeds, None without one: as accuracies where all scores are 0 or 1, else by Student's t on the
    items' mean differences. `ValueError` where the items differ."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    if any(list(run[seed].items) != list(a[seeds[0]].items) for run in (a, b) for seed in seeds):
        raise ValueError("the same items are needed, in the same order, for every run")
    rows_a, rows_b = (np.stack([run[seed].scores for seed in seeds]) for run in (a, b))
    if bool(np.isin([rows_a, rows_b], (0, 1)).all()):
        return compare_accuracy((rows_a == 1).tolist(), (rows_b == 1).tolist())
    differences = (rows_a - rows_b).mean(axis=0)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return None
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.975)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return ItemComparison(mean, mean - half, mean + half, p, n, len(seeds), "paired scores")


def compare_by_item(a: Mapping[int, Predictions], b: Mapping[int, Predictions], metric: str) -> ItemComparison | None:
    """a - b over common seeds; None without one, or for a metric that is not in `CLASS_METRICS`.

    `ValueError` where the items differ.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds or metric not in CLASS_METRICS:
        return None
    labels = a[seeds[0]].labels
    for seed in seeds:
        if not (np.array_equal(a[seed].labels, labels) and np.array_equal(b[seed].labels, labels)):
            raise ValueError("the same items are needed, in the same order, for every run")
    if metric == "accuracy":
        return compare_accuracy([a[s].right.tolist() for s in seeds], [b[s].right.tolist() for s in seeds])
    return bootstrap_metric([a[s].predicted for s in seeds], [b[s].predicted for s in seeds], labels, metric)


def compare_accuracy(right_a: Sequence[Sequence[bool]], right_b: Sequence[Sequence[bool]]) -> ItemComparison:
    """Difference of accuracies on the same items, mean over seeds; rows are seeds, columns items.

    Adjusted Wald interval of the mean difference per item, with two items added (Agresti & Min 2005, Stat. Med.
    24(5)). p is McNemar's exact one for a single seed, else that of the same normal approximation.
    """
    lengths = {len(row) for row in (*right_a, *right_b)}
    if len(right_a) != len(right_b) or not right_a or len(lengths) != 1 or lengths == {0}:
        raise ValueError("the same items are needed, at least one, and the same seeds")
    n, seeds = len(right_a[0]), len(right_a)
    d = [fmean(int(a[i]) - int(b[i]) for a, b in zip(right_a, right_b)) for i in range(n)]
    centre = math.fsum(d) / (n + 2)
    variance = (math.fsum(x * x for x in d) + 1) / (n + 2) - centre**2
    error = math.sqrt(variance / (n + 2))
    half = normal_quantile(0.95) * error
    if seeds == 1:
        p, test = _mcnemar(d.count(1.0), d.count(-1.0)), "McNemar"
    else:
        p, test = 2 * float(special.ndtr(-abs(centre) / error)), "paired by item"
    return ItemComparison(fmean(d), centre - half, centre + half, p, n, seeds, test)


def _mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p from the numbers of items that only one of the two got right."""
    discordant = only_a + only_b
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), discordant, 0.5))) if discordant else 1.0


def bootstrap_metric(
    predicted_a: Sequence[Classes],
    predicted_b: Sequence[Classes],
    labels: Classes,
    metric: str,
    draws: int = 1000,
) -> ItemComparison:
    """Difference of a class metric, mean over seeds, with the percentile interval of an item bootstrap.

    The same items are drawn for both methods and all seeds. p is twice the share of draws on the other side of zero.
    """
    classes = int(max(labels.max(), *(row.max() for row in (*predicted_a, *predicted_b)))) + 1
    compute = CLASS_METRICS[metric]
    n = len(labels)
    random = np.random.default_rng(0)

    def difference(weights: NDArray[np.float64] | None) -> float:
        def mean(rows: Sequence[Classes]) -> float:
            tables = (np.bincount(labels * classes + row, weights, classes * classes) for row in rows)
            return fmean(compute(table.reshape(classes, classes).astype(float)) for table in tables)

        return mean(predicted_a) - mean(predicted_b)

    drawn = [difference(random.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(draws)]
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    below, above = sum(x <= 0 for x in drawn), sum(x >= 0 for x in drawn)
    p = min(1.0, 2 * (min(below, above) + 1) / (draws + 1))
    return ItemComparison(difference(None), low, high, p, n, len(predicted_a), "item bootstrap")


def _accuracy(table: Confusion) -> float:
    return float(table.trace() / table.sum())


def _macro_f1(table: Confusion) -> float:
    counts = table.sum(0) + table.sum(1)
    present = counts > 0  # a class that is neither a label nor predicted has no F1
    return float(np.mean(2 * table.diagonal()[present] / counts[present]))


def _f1(table: Confusion) -> float:
    """F1 of the second of two classes; 0 where it is neither a label nor predicted."""
    if len(table) < 2:
        return 0.0
    counts = table[1].sum() + table[:, 1].sum()
    return float(2 * table[1, 1] / counts) if counts else 0.0


def _matthews(table: Confusion) -> float:
    """Multiclass correlation of Gorodkin (2004); 0 where labels or predictions are constant."""
    true, predicted, total = table.sum(1), table.sum(0), table.sum()
    scale = (total**2 - (true**2).sum()) * (total**2 - (predicted**2).sum())
    return float((table.trace() * total - (true * predicted).sum()) / math.sqrt(scale)) if scale > 0 else 0.0


CLASS_METRICS: dict[str, Callable[[Confusion], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "f1": _f1,
    "matthews": _matthews,
    "matthews_correlation": _matthews,
    "mcc": _matthews,
}
"""Metric from a confusion matrix: rows true, columns predicted."""
