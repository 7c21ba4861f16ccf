"""Intervals and tests over seeds: what may be said of a difference, and what may not.

Seeds are few (3 to 10), so means get t intervals and comparisons are paired by seed; a bootstrap over 3 seeds
would be wrong one time in four. Several methods against one reference are Holm-corrected together. scipy is
imported where it is used, so that importing this module stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, TypeVar

Verdict = Literal["better", "worse", "no difference seen", "not tested"]

# PooledVariance below this share of the values themselves are the rounding of floats, not noise.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, in the unit of the values; no bounds where they can't be had."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the `n` seeds that both have, its interval, and the two-sided p of "no
    difference"."""

    mean: float
    low: float | None
    high: float | None
    p: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """One method against the reference, corrected for all the methods that were compared with it.

    `difference` (name - reference) is uncorrected, and None where the two share no seed. `p`, `low` and
    `high` are Holm-corrected: the interval excludes zero exactly where the verdict is "better" or "worse".
    """

    name: str
    reference: str
    difference: PairedDifference | None
    p: float | None
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def missed(self) -> float | None:
        """Half width of the corrected interval: a true difference up to about this size can go unseen."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """t interval of the mean, mean +- t_{n-1} s / sqrt(n). One value has none: `low` and `high` are None.

    Raises `ValueError` for no values, or one that is NaN or infinite.
    """
    _check(values)
    mean, n = fmean(values), len(values)
    error = standard_error(values)
    if error is None:
        return Interval(mean, None, None, n)
    half = t_quantile(confidence, n - 1) * error
    return Interval(mean, mean - half, mean + half, n)


def standard_error(values: Sequence[float]) -> float | None:
    """s / sqrt(n), or None for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95, resolution: float = 0.0
) -> PairedDifference:
    """Paired t test and interval of a - b over the seeds that both have.

    One common seed: no interval, p = 1. No spread at all between the differences makes t infinite, which
    three lucky seeds do not deserve. Where the scores' smallest step is known (`resolution`, 1 / items for an
    accuracy) the standard deviation is therefore never taken to be less than half a step. Where it isn't, the
    exact sign test stands in: p = 2^(1-n) for a constant difference and 1 for identical scores, and the
    interval (the difference itself) is given only where n is large enough for a sign test at this confidence:
    6 at 95 %.

    Raises `ValueError` where there is no common seed, or a score is NaN or infinite.
    """
    seeds = sorted(a.keys() & b.keys())
    scores = [a[s] for s in seeds] + [b[s] for s in seeds]
    _check(scores)
    differences = [a[s] - b[s] for s in seeds]
    n, mean = len(seeds), fmean(differences)
    if n == 1:
        return PairedDifference(mean, None, None, 1.0, n)
    rounding = _ROUNDING * max(abs(x) for x in scores)
    spread = stdev(differences)
    spread = max(spread if spread > rounding else 0.0, resolution / 2)
    mean = mean if abs(mean) > rounding else 0.0
    if spread == 0:
        sign_test = 2.0 ** (1 - n)
        bound = mean if sign_test < 1 - confidence else None
        return PairedDifference(mean, bound, bound, sign_test if mean else 1.0, n)
    from scipy.special import stdtr

    error = spread / math.sqrt(n)
    half = t_quantile(confidence, n - 1) * error
    p = min(1.0, 2 * float(stdtr(n - 1, -abs(mean) / error)))
    return PairedDifference(mean, mean - half, mean + half, p, n)


def ratio_interval(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Interval | None:
    """Ratio of means, mean(a) / mean(b), over common seeds, with Fieller's paired interval.

    The interval holds every theta for which a - theta b is not told apart from zero by a paired t test. It is
    unbounded, so `low` and `high` are None, where b itself is not told apart from zero, and with one seed.
    None where mean(b) <= 0 (a ratio to it means nothing) or no seed is common. Source: Fieller 1954, J. R.
    Stat. Soc. B 16(2).
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds or fmean(b[s] for s in seeds) <= 0:
        return None
    xs, ys, n = [a[s] for s in seeds], [b[s] for s in seeds], len(seeds)
    _check(xs + ys)
    x, y = fmean(xs), fmean(ys)
    if n == 1:
        return Interval(x / y, None, None, n)
    weight = t_quantile(confidence, n - 1) ** 2 / n / (n - 1)
    quadratic = y * y - weight * sum((v - y) ** 2 for v in ys)
    linear = x * y - weight * sum((u - x) * (v - y) for u, v in zip(xs, ys))
    constant = x * x - weight * sum((u - x) ** 2 for u in xs)
    if quadratic <= 0:
        return Interval(x / y, None, None, n)
    root = math.sqrt(max(0.0, linear * linear - quadratic * constant))
    return Interval(x / y, (linear - root) / quadratic, (linear + root) / quadratic, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given (Holm 1979, Scand. J. Stat. 6(2)).

    Raises `ValueError` for a p outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie in [0, 1]: {list(p_values)}")
    count, largest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def compare_to_reference(
    scores: Mapping[str, Mapping[int, float]],
    reference: str,
    higher_is_better: bool,
    confidence: float = 0.95,
    resolution: float = 0.0,
) -> list[Comparison]:
    """Every other method against `reference`, paired by seed and Holm-corrected together, in the order given.

    The reference is to be one that was named beforehand; for one that the scores themselves singled out see
    `compare_to_best`. Fewer than two common seeds: "not tested", and not counted in the correction. `resolution`:
    see `paired_difference`. Raises `KeyError` where `reference` is not in `scores`.
    """
    base = scores[reference]
    pairs = {name: (values, base) for name, values in scores.items() if name != reference}
    corrected = _holm_corrected(pairs, confidence, resolution)
    return [
        _comparison(name, reference, corrected.get(name), higher_is_better, 1 - confidence)
        for name in scores
        if name != reference
    ]


_Pair = TypeVar("_Pair", bound=Hashable)


def _holm_corrected(
    pairs: Mapping[_Pair, tuple[Mapping[int, float], Mapping[int, float]]], confidence: float, resolution: float
) -> dict[_Pair, tuple[PairedDifference, float | None, PairedDifference | None]]:
    """Plain difference a - b, corrected p, and the difference with its corrected interval, for pairs with a common
    seed; the latter two are None where there is only one.

    A corrected interval has the level at which Holm's procedure tested its pair: alpha / (m - rank) for those
    rejected; the rest share the level of the first that was not. It excludes zero exactly where Holm rejects
    (the widths of several such intervals taken together are not simultaneous; Bonferroni's would be).
    """
    alpha = 1 - confidence
    plain = {
        pair: paired_difference(a, b, confidence, resolution) for pair, (a, b) in pairs.items() if a.keys() & b.keys()
    }
    tested = sorted((pair for pair in plain if plain[pair].n > 1), key=lambda pair: plain[pair].p)
    adjusted = dict(zip(tested, holm([plain[pair].p for pair in tested])))
    corrected: dict[_Pair, PairedDifference] = {}
    level = alpha
    for rank, pair in enumerate(tested):
        if rank == 0 or adjusted[tested[rank - 1]] < alpha:
            level = alpha / (len(tested) - rank)
        corrected[pair] = paired_difference(*pairs[pair], 1 - level, resolution)
    return {pair: (plain[pair], adjusted.get(pair), corrected.get(pair)) for pair in plain}


def _comparison(
    name: str,
    reference: str,
    found: tuple[PairedDifference, float | None, PairedDifference | None] | None,
    higher_is_better: bool,
    alpha: float,
) -> Comparison:
    plain, p, corrected = found or (None, None, None)
    if plain is None or p is None or corrected is None:
        return Comparison(name, reference, plain, None, None, None, "not tested")
    verdict: Verdict = "no difference seen"
    if p < alpha:
        verdict = "better" if (plain.mean > 0) == higher_is_better else "worse"
    return Comparison(name, reference, plain, p, corrected.low, corrected.high, verdict)


def item_standard_error(score: float, items: int) -> float:
    """Binomial standard error of a share in [0, 1] seen on `items` test items.

    Two hits and two misses are added (Agresti & Coull 1998), so that 100 % on 20 items is not called exact.
    For an accuracy this is the noise of drawing the test set; for other shares (macro F1) it is an
    approximation.
    """
    share = (score * items + 2) / (items + 4)
    return math.sqrt(share * (1 - share) / (items + 4))


def proportion_interval(hits: int, tries: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934, Biometrika 26(4)): quantiles of Beta(hits, tries - hits
    + 1) and Beta(hits + 1, tries - hits). Raises `ValueError` where hits is not between 0 and tries > 0."""
    if not 0 <= hits <= tries or tries < 1:
        raise ValueError(f"{hits} of {tries} is no proportion")
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, tries - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, tries - hits, 1 - tail)) if hits < tries else 1.0
    return low, high


def seeds_needed_paired(
    differences: Sequence[float],
    size: float,
    power: float = 0.8,
    confidence: float = 0.95,
    resolution: float = 0.0,
) -> int:
    """How many further seeds a paired t test needs to see a true difference of `size` with this power.

    The spread is that of the paired `differences` seen so far, taken as true (from 3 seeds it is itself
    rough, so is the answer), and at least half of `resolution`, as in `paired_difference`; the power is exact, from
    the noncentral t. 0: there are enough. Raises `ValueError` for fewer than two differences or size <= 0.
    """
    _check(differences)
    if len(differences) < 2 or not size > 0:
        raise ValueError("at least two paired differences and a size above 0 are needed")
    from scipy.special import ndtri

    spread = max(stdev(differences), resolution / 2)
    if spread == 0:
        return 0
    effect = size / spread
    by_normal = ((normal_quantile(confidence) + float(ndtri(power))) / effect) ** 2
    if by_normal > 1000:  # the t test is the normal test to within 2 seeds
        return max(0, math.ceil(by_normal) + 2 - len(differences))
    total = 2
    while paired_power(effect, total, confidence) < power:
        total += 1
    return max(0, total - len(differences))


def paired_power(effect: float, seeds: int, confidence: float = 0.95) -> float:
    """How often a two-sided paired t test over `seeds` pairs sees a true difference of `effect` standard deviations
    of the paired differences: 1 - F(t; n - 1, effect sqrt n) + F(-t; ...), F the noncentral t."""
    from scipy.special import nctdtr

    shift, bound = effect * math.sqrt(seeds), t_quantile(confidence, seeds - 1)
    seen = 1.0 - float(nctdtr(seeds - 1, shift, bound))
    if shift < 5:  # beyond it the far tail is below 1e-6, and the function leaves its range
        seen += float(nctdtr(seeds - 1, shift, -bound))
    return seen


def t_quantile(confidence: float, dof: int) -> float:
    """Of Student's t, two-sided."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.5 + confidence / 2))


def normal_quantile(confidence: float) -> float:
    """Of the standard normal law, two-sided: 1.96 for 95 %."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2))


def _check(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no values (or no common seed): nothing to take a mean of")
    if not all(math.isfinite(v) for v in values):
        raise ValueError("a value is NaN or infinite; a diverged run must not enter a mean")
