"""Comparisons with the best method: a variance pooled over the methods, and the studentized range for all pairs.

docs/statistics.md explains the rules and their error rates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import special

from tunewise.advise.statistics import Comparison, Scores, paired_difference, paired_power, verdict_of
from tunewise.advise.studentized_range import studentized_range_ppf, studentized_range_sf

OUTLIER_LEVEL = 0.01
"""Level of Cochran's test: a method with a larger variance does not enter the pool."""
OWN_VARIANCE_LEVEL = 0.2
"""Level of the F test: a method with a larger variance is judged by its own."""
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class VarianceEstimate:
    """Variance of a score about its method's mean and its seed's effect, with its degrees of freedom."""

    variance: float
    dof: float


@dataclass(frozen=True)
class PooledVariance:
    """`pooled` over the methods, and the `own` variance of those above it; `outliers` are not in the pool."""

    pooled: VarianceEstimate
    own: dict[str, VarianceEstimate]
    outliers: tuple[str, ...]
    methods: int

    def of_pair(self, a: str, b: str) -> VarianceEstimate:
        """Mean of the two variances; Satterthwaite's degrees of freedom, rounded down to a tenth for the cache."""
        if a not in self.own and b not in self.own:
            return self.pooled
        x, y = self.own.get(a, self.pooled), self.own.get(b, self.pooled)
        total = x.variance + y.variance
        dof = total**2 / (x.variance**2 / x.dof + y.variance**2 / y.dof)
        return VarianceEstimate(total / 2, math.floor(10 * dof) / 10)


def estimate_variances(scores: Scores, resolution: float = 0.0) -> PooledVariance | None:
    """The variances of these scores; None where no two methods share two seeds.

    A `resolution` (1 / items) bounds the pooled variance from below, as in `paired_difference`.
    """
    repeated = {name: row for name, row in scores.items() if len(row) > 1}
    seeds = _most_common_seeds(repeated)
    pool = [name for name, row in repeated.items() if seeds and seeds <= row.keys()]
    if len(pool) < 2 or len(seeds) < 2:
        return None
    dof = len(seeds) - 1
    outliers: list[str] = []
    while True:
        variances = _residual_variances(repeated, pool, seeds)
        total = sum(variances[name] for name in pool)
        largest = max(pool, key=variances.__getitem__)
        if len(pool) < 3 or not total:
            break
        # Seed effects from the others alone: in a small pool an erratic method would inflate everybody's residuals.
        rest = [name for name in pool if name != largest]
        without = _residual_variances(repeated, rest, seeds)
        if without[largest] <= sum(without[name] for name in pool) * _cochran_critical(dof, len(pool)):
            break
        outliers.append(largest)
        pool.remove(largest)
    pooled = VarianceEstimate(max(total / len(pool), resolution**2 / 8), (len(pool) - 1) * dof)
    own = {
        name: VarianceEstimate(variances[name], len(row) - 1)
        for name, row in repeated.items()
        if variances[name] > pooled.variance * _f_quantile(OWN_VARIANCE_LEVEL, len(row) - 1, pooled.dof)
    }
    return PooledVariance(pooled, own, tuple(outliers), len(repeated))


def compare_to_best(
    scores: Scores, best: str, higher_is_better: bool, confidence: float = 0.95, resolution: float = 0.0
) -> list[Comparison]:
    """Every other method against one that was selected by its score, corrected for all pairs, in the order given.

    `p` is the larger of the studentized range's and the one-sided paired t test's; the interval is the wider of both.
    """
    variances = estimate_variances(scores, resolution)
    return [
        _compare(scores, (name, best), variances, higher_is_better, confidence, resolution)
        for name in scores
        if name != best
    ]


def seeds_needed(scores: Scores, a: str, b: str, size: float, resolution: float = 0.0, power: float = 0.8) -> int:
    """About how many further seeds of all methods `compare_to_best` needs to see a true difference of `size`.

    The variances seen so far are taken as true. 0: there are enough seeds. `ValueError` for size <= 0, or fewer than
    two common seeds.
    """
    common = scores[a].keys() & scores[b].keys()
    variances = estimate_variances({a: scores[a], b: scores[b]} if len(common) < 2 else scores, resolution)
    if len(common) < 2 or variances is None or not size > 0:
        raise ValueError("at least two common seeds and a size above 0 are needed")
    pair = variances.of_pair(a, b)
    if not pair.variance:
        return 0
    dof_per_seed = pair.dof / (len(common) - 1)

    def is_enough(seeds: int) -> bool:
        error = math.sqrt(pair.variance / seeds)
        critical = studentized_range_ppf(0.95, variances.methods, round(dof_per_seed * (seeds - 1), 1)) * error
        if size < critical + float(special.ndtri(power)) * math.sqrt(2) * error:
            return False
        effect = size / math.sqrt(2 * pair.variance)
        return effect * math.sqrt(seeds) > 30 or paired_power(effect, seeds, 0.9) >= power

    total = len(common)
    while total < _MOST_SEEDS and not is_enough(total):
        total = max(total + 1, math.ceil(1.02 * total))
    return total - len(common)


def _compare(
    scores: Scores,
    pair: tuple[str, str],
    variances: PooledVariance | None,
    higher_is_better: bool,
    confidence: float,
    resolution: float,
) -> Comparison:
    name, best = pair
    a, b = scores[name], scores[best]
    if not a.keys() & b.keys():
        return Comparison(name, best, None, None, None, None, "not tested")
    plain = paired_difference(a, b, confidence, resolution)
    if plain.n < 2 or variances is None:
        return Comparison(name, best, plain, None, None, None, "not tested")
    variance = variances.of_pair(name, best)
    error = math.sqrt(variance.variance / plain.n)
    ratio = abs(plain.mean) / error if error else (math.inf if plain.mean else 0.0)
    p_range = 0.0 if ratio == math.inf else studentized_range_sf(ratio, variances.methods, variance.dof)
    p = max(plain.p / 2, p_range)
    one_sided = paired_difference(a, b, 2 * confidence - 1, resolution)
    low = high = None
    if one_sided.low is not None and one_sided.high is not None:
        half = studentized_range_ppf(confidence, variances.methods, variance.dof) * error
        low, high = min(one_sided.low, plain.mean - half), max(one_sided.high, plain.mean + half)
    return Comparison(name, best, plain, p, low, high, verdict_of(plain.mean, p, higher_is_better, 1 - confidence))


def _most_common_seeds(scores: Scores) -> frozenset[int]:
    """The set of seeds that most methods have, and of several such sets the largest."""
    sets = Counter(frozenset(row) for row in scores.values())
    return max(sets, key=lambda seeds: (sets[seeds], len(seeds), sorted(seeds)), default=frozenset())


def _residual_variances(scores: Scores, pool: Sequence[str], seeds: frozenset[int]) -> dict[str, float]:
    """Variance of each method about its mean and the seed effects, which are means over the pool.

    The effects take 1 / k of a member's own variation with them and add as much to another method's.
    """
    effect = {seed: fmean(scores[name][seed] for name in pool) for seed in seeds}
    variances = {}
    for name, row in scores.items():
        residuals = [value - effect.get(seed, fmean(effect.values())) for seed, value in row.items()]
        mean = fmean(residuals)
        share = 1 - 1 / len(pool) if name in pool else 1 + 1 / len(pool)
        variances[name] = math.fsum((value - mean) ** 2 for value in residuals) / (len(row) - 1) / share
    return variances


def _cochran_critical(dof: int, count: int) -> float:
    """Critical value of Cochran's C: the largest likely share of one variance in the sum of `count`."""
    f = _f_quantile(OUTLIER_LEVEL / count, dof, dof * (count - 1))
    return 1 / (1 + (count - 1) / f)


def _f_quantile(tail: float, dof: float, dof_below: float) -> float:
    """Value that Fisher's F exceeds with probability `tail`."""
    return float(special.fdtri(dof, dof_below, 1 - tail))
