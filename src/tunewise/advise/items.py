"""The second source of noise: which items happened to be in the test set. Two methods see the same items at every seed,
so their answers are compared item by item.

An interval over seeds says what another seed would do on this test set; one over items what another test set would do
to these trained models. A difference that either can explain away is not shown to be the methods'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from tunewise.advise.statistics import normal_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemComparison:
    """Two methods on the same test items: difference of the metric (a - b, mean over `seeds` common seeds), its 95 %
    interval over items, the two-sided p of "no difference", and how it was found."""

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
    """What one run answered on the test items: class indices, and the right ones. Both (items,)."""

    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.predicted == self.labels


def compare_by_item(a: Mapping[int, Predictions], b: Mapping[int, Predictions], metric: str) -> ItemComparison | None:
    """a - b over the seeds that both have; None where there are none, or the metric is not one of `CLASS_METRICS`.

    Accuracy has a closed form; other metrics get an item bootstrap. Raises `ValueError` where the items differ.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds or metric not in CLASS_METRICS:
        return None
    import numpy as np

    labels = a[seeds[0]].labels
    for seed in seeds:
        if not (np.array_equal(a[seed].labels, labels) and np.array_equal(b[seed].labels, labels)):
            raise ValueError("the same items are needed, in the same order, for every run")
    if metric == "accuracy":
        return compare_accuracy([a[s].right.tolist() for s in seeds], [b[s].right.tolist() for s in seeds])
    return bootstrap_metric([a[s].predicted for s in seeds], [b[s].predicted for s in seeds], labels, metric)


def compare_accuracy(right_a: Sequence[Sequence[bool]], right_b: Sequence[Sequence[bool]]) -> ItemComparison:
    """Difference of accuracies on the same items, mean over seeds; rows are seeds, columns items.

    With d_i the mean over seeds of (a right) - (b right) on item i, the interval is that of the mean of d_i, with two
    items added: half a one each for +1 and -1, one for 0. For one seed that is Agresti and Min's adjusted Wald interval
    (2005, Stat. Med. 24(5)), which holds its coverage for few items and never has zero width, and p is McNemar's
    exact one; for more, p is that of the same normal approximation. Raises `ValueError` for no items or unequal shapes.
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
        from scipy.special import ndtr

        p, test = 2 * float(ndtr(-abs(centre) / error)), "paired by item"
    return ItemComparison(fmean(d), centre - half, centre + half, p, n, seeds, test)


def _mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p: of the items that one alone got right, as many or more on one side by tossing a coin."""
    from scipy.special import bdtr

    split = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), split, 0.5))) if split else 1.0


def bootstrap_metric(
    predicted_a: Sequence[NDArray[np.int64]],
    predicted_b: Sequence[NDArray[np.int64]],
    labels: NDArray[np.int64],
    metric: str,
    draws: int = 1000,
) -> ItemComparison:
    """Difference of any metric of classes, mean over seeds, with the percentile interval of an item bootstrap: the same
    items are drawn for both methods and all seeds. p is twice the share of draws on the other side of zero."""
    import numpy as np

    classes = int(max(labels.max(), *(row.max() for row in (*predicted_a, *predicted_b)))) + 1
    of = CLASS_METRICS[metric]
    n = len(labels)
    random = np.random.default_rng(0)

    def difference(weights: NDArray[np.float64] | None) -> float:
        def mean(rows: Sequence[NDArray[np.int64]]) -> float:
            tables = (np.bincount(labels * classes + row, weights, classes * classes) for row in rows)
            return fmean(of(table.reshape(classes, classes).astype(float)) for table in tables)

        return mean(predicted_a) - mean(predicted_b)

    found = [difference(random.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(draws)]
    low, high = (float(q) for q in np.quantile(found, [0.025, 0.975]))
    below, above = sum(x <= 0 for x in found), sum(x >= 0 for x in found)
    p = min(1.0, 2 * (min(below, above) + 1) / (draws + 1))
    return ItemComparison(difference(None), low, high, p, n, len(predicted_a), "item bootstrap")


def _accuracy(table: NDArray[np.float64]) -> float:
    return float(table.trace() / table.sum())


def _macro_f1(table: NDArray[np.float64]) -> float:
    import numpy as np

    counts = table.sum(0) + table.sum(1)
    seen = counts > 0  # classes that occur neither in the labels nor in the predictions say nothing about either
    return float(np.mean(2 * table.diagonal()[seen] / counts[seen]))


def _f1(table: NDArray[np.float64]) -> float:
    """Of the second of two classes; 0 where nobody names it."""
    if len(table) < 2:
        return 0.0
    counts = table[1].sum() + table[:, 1].sum()
    return float(2 * table[1, 1] / counts) if counts else 0.0


def _matthews(table: NDArray[np.float64]) -> float:
    """The multiclass correlation of Gorodkin (2004); 0 where one side knows one class only."""
    true, predicted, total = table.sum(1), table.sum(0), table.sum()
    spread = (total**2 - (true**2).sum()) * (total**2 - (predicted**2).sum())
    return float((table.trace() * total - (true * predicted).sum()) / math.sqrt(spread)) if spread > 0 else 0.0


CLASS_METRICS: dict[str, Callable[[NDArray[np.float64]], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "f1": _f1,
    "matthews": _matthews,
    "matthews_correlation": _matthews,
    "mcc": _matthews,
}
"""From a confusion matrix (rows true, columns predicted) to the metric."""
