"""Intervals and tests over seeds: t intervals, paired t tests, Holm's correction, power (docs/statistics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import special

Verdict = Literal["better", "worse", "no difference seen", "not tested"]
Scores = Mapping[str, Mapping[int, float]]
"""By method, then by seed."""

# A standard deviation below this share of the values themselves is rounding of floats, not noise.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values with its confidence interval; bounds are None where the interval is unknown."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over `n` common seeds, its interval, and the two-sided p of "no difference"."""

    mean: float
    low: float | None
    high: float | None
    p: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A method against a reference. `difference` (name - reference) is uncorrected, None without a common seed.

    `p`, `low` and `high` are corrected for multiple comparisons: the interval excludes zero exactly where the verdict
    is "better" or "worse".
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
    """t interval of the mean; a single value has no bounds. `ValueError` for no values, NaN or infinity."""
    _check_finite(values)
    mean, n = fmean(values), len(values)
    error = standard_error(values)
    if error is None:
        return Interval(mean, None, None, n)
    half = t_quantile(confidence, n - 1) * error
    return Interval(mean, mean - half, mean + half, n)


def standard_error(values: Sequence[float]) -> float | None:
    """s / sqrt(n); None for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95, resolution: float = 0.0
) -> PairedDifference:
    """Paired t test of a - b over common seeds; `resolution` is the smallest step of a score (1 / items).

    The standard deviation is at least half a `resolution`: a few equal differences don't make t infinite. Without a
    resolution, constant differences get the exact sign test, p = 2^(1-n). `ValueError` without a common seed.
    """
    seeds = sorted(a.keys() & b.keys())
    scores = [a[s] for s in seeds] + [b[s] for s in seeds]
    _check_finite(scores)
    differences = [a[s] - b[s] for s in seeds]
    n, mean = len(seeds), fmean(differences)
    if n == 1:
        return PairedDifference(mean, None, None, 1.0, n)
    rounding = _ROUNDING * max(abs(x) for x in scores)
    deviation = stdev(differences)
    deviation = max(deviation if deviation > rounding else 0.0, resolution / 2)
    mean = mean if abs(mean) > rounding else 0.0
    if deviation == 0:
        sign_test = 2.0 ** (1 - n)
        bound = mean if sign_test < 1 - confidence else None
        return PairedDifference(mean, bound, bound, sign_test if mean else 1.0, n)
    error = deviation / math.sqrt(n)
    half = t_quantile(confidence, n - 1) * error
    p = min(1.0, 2 * float(special.stdtr(n - 1, -abs(mean) / error)))
    return PairedDifference(mean, mean - half, mean + half, p, n)


def ratio_interval(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Interval | None:
    """mean(a) / mean(b) over common seeds with Fieller's paired interval (1954, J. R. Stat. Soc. B 16(2)).

    None where mean(b) <= 0 or no seed is common; no bounds where mean(b) is not significantly above zero.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds or fmean(b[s] for s in seeds) <= 0:
        return None
    xs, ys, n = [a[s] for s in seeds], [b[s] for s in seeds], len(seeds)
    _check_finite(xs + ys)
    x, y = fmean(xs), fmean(ys)
    if n == 1:
        return Interval(x / y, None, None, n)
    # The interval holds every theta for which a - theta b does not differ significantly from zero.
    weight = t_quantile(confidence, n - 1) ** 2 / n / (n - 1)
    quadratic = y * y - weight * sum((v - y) ** 2 for v in ys)
    linear = x * y - weight * sum((u - x) * (v - y) for u, v in zip(xs, ys))
    constant = x * x - weight * sum((u - x) ** 2 for u in xs)
    if quadratic <= 0:
        return Interval(x / y, None, None, n)
    root = math.sqrt(max(0.0, linear * linear - quadratic * constant))
    return Interval(x / y, (linear - root) / quadratic, (linear + root) / quadratic, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given (1979, Scand. J. Stat. 6(2))."""
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie in [0, 1]: {list(p_values)}")
    count, largest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def compare_to_reference(
    scores: Scores, reference: str, higher_is_better: bool, confidence: float = 0.95, resolution: float = 0.0
) -> list[Comparison]:
    """Every other method against a reference named beforehand, paired by seed, Holm-corrected, in the order given.

    Each corrected interval has the level at which Holm's procedure tested the pair: alpha / (m - rank) where it was
    rejected, else the level of the first that was not. With fewer than two common seeds: "not tested".
    """
    base, alpha = scores[reference], 1 - confidence
    others = {name: values for name, values in scores.items() if name != reference}
    plain = {
        name: paired_difference(values, base, confidence, resolution)
        for name, values in others.items()
        if values.keys() & base.keys()
    }
    tested = sorted((name for name in plain if plain[name].n > 1), key=lambda name: plain[name].p)
    adjusted = dict(zip(tested, holm([plain[name].p for name in tested])))
    corrected: dict[str, PairedDifference] = {}
    level = alpha
    for rank, name in enumerate(tested):
        if rank == 0 or adjusted[tested[rank - 1]] < alpha:
            level = alpha / (len(tested) - rank)
        corrected[name] = paired_difference(others[name], base, 1 - level, resolution)
    return [
        Comparison(
            name,
            reference,
            plain[name],
            adjusted[name],
            corrected[name].low,
            corrected[name].high,
            verdict_of(plain[name].mean, adjusted[name], higher_is_better, alpha),
        )
        if name in corrected
        else Comparison(name, reference, plain.get(name), None, None, None, "not tested")
        for name in others
    ]


def verdict_of(difference: float, p: float, higher_is_better: bool, alpha: float) -> Verdict:
    """ "better" or "worse" where p < alpha."""
    if p >= alpha:
        return "no difference seen"
    return "better" if (difference > 0) == higher_is_better else "worse"


def item_standard_error(score: float, items: int) -> float:
    """Binomial standard error of a share, with two hits and two misses added (Agresti & Coull 1998)."""
    share = (score * items + 2) / (items + 4)
    return math.sqrt(share * (1 - share) / (items + 4))


def proportion_interval(hits: int, tries: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934, Biometrika 26(4))."""
    if not 0 <= hits <= tries or tries < 1:
        raise ValueError(f"{hits} of {tries} is no proportion")
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(hits, tries - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, tries - hits, 1 - tail)) if hits < tries else 1.0
    return low, high


def paired_power(effect: float, seeds: int, confidence: float = 0.95) -> float:
    """Power of a two-sided paired t test for a difference of `effect` standard deviations (noncentral t)."""
    shift, bound = effect * math.sqrt(seeds), t_quantile(confidence, seeds - 1)
    seen = 1.0 - float(special.nctdtr(seeds - 1, shift, bound))
    if shift < 5:  # beyond it the far tail is below 1e-6, and the function leaves its range
        seen += float(special.nctdtr(seeds - 1, shift, -bound))
    return seen


def t_quantile(confidence: float, dof: int) -> float:
    """Two-sided quantile of Student's t."""
    return float(special.stdtrit(dof, 0.5 + confidence / 2))


def normal_quantile(confidence: float) -> float:
    """Two-sided quantile of the standard normal distribution: 1.96 for 95 %."""
    return float(special.ndtri(0.5 + confidence / 2))


def _check_finite(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no values (or no common seed): nothing to take a mean of")
    if not all(math.isfinite(v) for v in values):
        raise ValueError("a value is NaN or infinite; a diverged run must not enter a mean")
