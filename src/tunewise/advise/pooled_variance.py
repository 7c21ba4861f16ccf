"""Who is told apart from the best, when all methods of a comparison lend each other their noise.

Three seeds say little of a spread: a paired t test has two degrees of dof, and corrected for the 136 pairs of 17
methods it sees nothing below 43 standard deviations of a difference. Yet 17 methods show the noise of training 17
times. So the spread of a score about its method's mean and its seed's effect is pooled over the methods, and all pairs
are judged at once by the studentized range. What is assumed is that the methods scatter alike; where the scores say
otherwise they are heeded:

- methods that scatter plainly more than the rest (Cochran's C at 1 %, the largest first) lend nothing to the pool;
- a method whose own spread is the larger by an F test at 20 %, a level chosen so that doubt counts against pooling,
  stands on its own spread with its own few degrees of dof, joined by Welch and Satterthwaite as in Games & Howell;
- and no pair is told apart whose own paired t test does not see the same difference, one-sided at 95 %: one method
  under two names is called different in at most 10 % of experiments, whatever the estimate_variances of it and of the others.

Simulated with 12 names of one method at 3 seeds, any name is called worse than the luckiest in 2.5 % of experiments
with equal estimate_variances, and in at most 8 % with one or half of them scattering 3 to 10 times as much, two of them 5
times, or all differently (standard deviation 0.7 of the logarithm). With two methods it is the paired t test.

Sources: Tukey 1953, The problem of multiple comparisons; Cochran 1941, Ann. Eugenics 11(1); Welch 1947, Biometrika
34(1-2); Games & Howell 1976, J. Educ. Stat. 1(2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tunewise.advise.statistics import Comparison, PairedDifference, Verdict, paired_difference, paired_power
from tunewise.advise.studentized_range import studentized_range_ppf, studentized_range_sf

Scores = Mapping[str, Mapping[int, float]]
"""By method, then by seed."""

OUTLIER_LEVEL = 0.01
"""Level of Cochran's test, above which a method's spread is left out of the pool."""
OWN_VARIANCE_LEVEL = 0.2
"""Level of the F test from which on a method stands on its own spread."""
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class VarianceEstimate:
    """Variance of one score about its method's mean and its seed's effect, and its degrees of dof."""

    variance: float
    dof: float


@dataclass(frozen=True)
class PooledVariance:
    """The noise of a comparison. `own`: of the methods that scatter more than the pool, by name; `outliers`: those of
    them that lend nothing to it; `methods`: how many are compared."""

    pooled: VarianceEstimate
    own: dict[str, VarianceEstimate]
    outliers: tuple[str, ...]
    methods: int

    def of(self, name: str) -> VarianceEstimate:
        return self.own.get(name, self.pooled)

    def of_pair(self, a: str, b: str) -> VarianceEstimate:
        """Mean of the two variances; its degrees of dof by Satterthwaite, rounded down to a tenth, where
        one is a method's own."""
        if a not in self.own and b not in self.own:
            return self.pooled
        x, y = self.of(a), self.of(b)
        total = x.variance + y.variance
        dof = total**2 / (x.variance**2 / x.dof + y.variance**2 / y.dof)
        return VarianceEstimate(total / 2, math.floor(10 * dof) / 10)


def estimate_variances(scores: Scores, resolution: float = 0.0) -> PooledVariance | None:
    """The noise of these scores; None where no two methods share two seeds. Methods with other seeds than most have
    are judged by the pool of the rest. A share's `resolution` (1 / items) bounds the pooled spread from below, as in
    `paired_difference`."""
    field = {name: row for name, row in scores.items() if len(row) > 1}
    seeds = _commonest(field)
    pool = [name for name, row in field.items() if seeds and seeds <= row.keys()]
    if len(pool) < 2 or len(seeds) < 2:
        return None
    dof = len(seeds) - 1
    outliers: list[str] = []
    while True:
        found = _about_seeds(field, pool, seeds)
        total = sum(found[name] for name in pool)
        loudest = max(pool, key=found.__getitem__)
        if len(pool) < 3 or not total:
            break
        # About the seeds' effects in the others: in a small pool a loud member's noise is in everybody's rest.
        apart = _about_seeds(field, [name for name in pool if name != loudest], seeds)
        if apart[loudest] <= sum(apart[name] for name in pool) * _cochran(dof, len(pool)):
            break
        outliers.append(loudest)
        pool.remove(loudest)
    pooled = VarianceEstimate(max(total / len(pool), resolution**2 / 8), (len(pool) - 1) * dof)
    own = {
        name: VarianceEstimate(found[name], len(row) - 1)
        for name, row in field.items()
        if found[name] > pooled.variance * _f_quantile(OWN_VARIANCE_LEVEL, len(row) - 1, pooled.dof)
    }
    return PooledVariance(pooled, own, tuple(outliers), len(field))


def compare_to_best(
    scores: Scores, leader: str, higher_is_better: bool, confidence: float = 0.95, resolution: float = 0.0
) -> list[Comparison]:
    """Every other method against one that was picked for its score, such as the best, in the order given.

    The highest of several noisy means is partly luck, so the tests are corrected for all pairs that it could have
    been. `p` is the larger of the studentized range's and the one-sided paired t test's, and the interval the wider of
    theirs: it excludes zero exactly where the verdict is "better" or "worse". Fewer than two common seeds: not tested.
    """
    noise = estimate_variances(scores, resolution)
    return [
        _compared(name, leader, scores, noise, higher_is_better, confidence, resolution)
        for name in scores
        if name != leader
    ]


def seeds_needed(scores: Scores, a: str, b: str, size: float, resolution: float = 0.0, power: float = 0.8) -> int:
    """How many further seeds `compare_to_best` needs, about, to see a true difference of `size` between two of the
    methods with this power at 95 %, where all of them get those seeds.

    The estimate_variances seen so far are taken as true, so the answer is rough; the power of each of the two tests is asked for
    by itself. 0: there are enough. Raises `ValueError` for size <= 0, or fewer than two common seeds.
    """
    common = scores[a].keys() & scores[b].keys()
    noise = estimate_variances({a: scores[a], b: scores[b]} if len(common) < 2 else scores, resolution)
    if len(common) < 2 or noise is None or not size > 0:
        raise ValueError("at least two common seeds and a size above 0 are needed")
    from scipy.special import ndtri

    pair = noise.of_pair(a, b)
    if not pair.variance:
        return 0
    lent = pair.dof / (len(common) - 1)

    def sees(seeds: int) -> bool:
        error = math.sqrt(pair.variance / seeds)
        critical = studentized_range_ppf(0.95, noise.methods, round(lent * (seeds - 1), 1)) * error
        if size < critical + float(ndtri(power)) * math.sqrt(2) * error:
            return False
        effect = size / math.sqrt(2 * pair.variance)
        return effect * math.sqrt(seeds) > 30 or paired_power(effect, seeds, 0.9) >= power

    total = len(common)
    while total < _MOST_SEEDS and not sees(total):
        total = max(total + 1, math.ceil(1.02 * total))
    return total - len(common)


def _compared(
    name: str,
    leader: str,
    scores: Scores,
    noise: PooledVariance | None,
    higher_is_better: bool,
    confidence: float,
    resolution: float,
) -> Comparison:
    common = scores[name].keys() & scores[leader].keys()
    if not common:
        return Comparison(name, leader, None, None, None, None, "not tested")
    plain = paired_difference(scores[name], scores[leader], confidence, resolution)
    if plain.n < 2 or noise is None:
        return Comparison(name, leader, plain, None, None, None, "not tested")
    pair = noise.of_pair(name, leader)
    error = math.sqrt(pair.variance / plain.n)
    ratio = abs(plain.mean) / error if error else (math.inf if plain.mean else 0.0)
    p = max(plain.p / 2, 0.0 if ratio == math.inf else studentized_range_sf(ratio, noise.methods, pair.dof))
    one_sided = paired_difference(scores[name], scores[leader], 2 * confidence - 1, resolution)
    low, high = _wider(one_sided, studentized_range_ppf(confidence, noise.methods, pair.dof) * error)
    verdict: Verdict = "no difference seen"
    if p < 1 - confidence:
        verdict = "better" if (plain.mean > 0) == higher_is_better else "worse"
    return Comparison(name, leader, plain, p, low, high, verdict)


def _wider(plain: PairedDifference, half: float) -> tuple[float | None, float | None]:
    if plain.low is None or plain.high is None:
        return None, None
    return min(plain.low, plain.mean - half), max(plain.high, plain.mean + half)


def _commonest(field: Scores) -> frozenset[int]:
    """The seeds that most methods have, and of several such sets the largest."""
    sets = Counter(frozenset(row) for row in field.values())
    return max(sets, key=lambda seeds: (sets[seeds], len(seeds), sorted(seeds)), default=frozenset())


def _about_seeds(field: Scores, pool: Sequence[str], seeds: frozenset[int]) -> dict[str, float]:
    """Each method's variance about its mean and the seeds' effects in the pool, which takes 1 / k of a member's own
    variation with it and adds as much to another's."""
    effect = {seed: fmean(field[name][seed] for name in pool) for seed in seeds}
    found = {}
    for name, row in field.items():
        rest = {seed: value - effect.get(seed, fmean(effect.values())) for seed, value in row.items()}
        mean = fmean(rest.values())
        share = 1 - 1 / len(pool) if name in pool else 1 + 1 / len(pool)
        found[name] = math.fsum((value - mean) ** 2 for value in rest.values()) / (len(row) - 1) / share
    return found


def _cochran(dof: int, count: int) -> float:
    """The largest share of the sum of `count` variances that is still likely."""
    f = _f_quantile(OUTLIER_LEVEL / count, dof, dof * (count - 1))
    return 1 / (1 + (count - 1) / f)


def _f_quantile(above: float, dof: float, below: float) -> float:
    """Of Fisher's F: exceeded with probability `above`."""
    from scipy.special import fdtri

    return float(fdtri(dof, below, 1 - above))
