"""The A/A check: how often a comparison finds a difference between copies of one method.

At a 95 % level that is one time in twenty. In 200 repeats, 19 or fewer in 997 of 1,000 such checks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import special

from tunewise.advise.decision import Limits, decide
from tunewise.advise.statistics import proportion_interval
from tunewise.advise.summary import summarise
from tunewise.errors import SpecError
from tunewise.store.records import RunRecord
from tunewise.text_format import pluralize

_LEVEL = 0.05
_CONFIDENCE = 0.997

Quantity = Literal["metric", "gap"]
Against = Literal["the reference", "the best", "each other"]


@dataclass(frozen=True)
class AACheck:
    """How often copies of one method were called different.

    `low`, `high`: 95 % interval of the rate. `allowed`: the largest count in line with the level. `deviation`: standard
    deviation over seeds of the runs; 0 means that nothing was checked.
    """

    quantity: Quantity
    name: str
    against: Against
    seeds: int
    repeats: int
    different: int
    low: float
    high: float
    allowed: int
    deviation: float

    @property
    def rate(self) -> float:
        return self.different / self.repeats

    @property
    def holds(self) -> bool:
        return self.different <= self.allowed


def max_allowed(repeats: int) -> int:
    """The least count c with P(X <= c) >= 0.997 for X ~ Binomial(repeats, 0.05): 19 of 200."""
    return next(c for c in range(repeats + 1) if float(special.bdtr(c, repeats, _LEVEL)) >= _CONFIDENCE)


def check_by_simulation(
    runs: Sequence[RunRecord], seeds: int, repeats: int = 200, names: int = 2, draw: int = 0
) -> list[AACheck]:
    """The check for test metric and gap, on runs drawn with the mean and deviation of the finished `runs`.

    Each repeat draws `seeds` runs (normal) under each of `names` names. Verdicts against the reference and against the
    best are counted separately; with two names they are the same. `SpecError` for fewer than two finished runs, seeds
    or names.
    """
    done = [r for r in runs if r.status == "done" and r.results is not None]
    if len(done) < 2:
        raise SpecError(f"{pluralize(len(done), 'finished run')} can't show a variation; at least 2 are needed")
    if seeds < 2 or names < 2 or repeats < 1:
        given = f"{pluralize(seeds, 'seed')}, {pluralize(names, 'name')}, {pluralize(repeats, 'repeat')}"
        raise SpecError(f"{given}: at least 2, 2 and 1 are needed")
    sample = done[0]
    assert sample.results is not None
    key = sample.results.metric
    values: dict[Quantity, list[float]] = {
        "metric": [r.results.test.metrics[key] for r in done if r.results],
        "gap": [r.results.gap for r in done if r.results],
    }
    random_ = random.Random(draw)
    different: Counter[tuple[Quantity, Against]] = Counter()
    for _ in range(repeats):
        drawn = [
            _copy_run(sample, f"name {i + 1}", seed, _draw(random_, values["metric"]), _draw(random_, values["gap"]))
            for i in range(names)
            for seed in range(seeds)
        ]
        found = _find_differences(drawn)
        different.update(found if names > 2 else {(quantity, "each other") for quantity, _ in found})
    titles: dict[Quantity, str] = {"metric": f"test {key.replace('_', ' ')}", "gap": "generalization gap"}
    families: tuple[Against, ...] = ("each other",) if names == 2 else ("the reference", "the best")
    checks = []
    for quantity, title in titles.items():
        for against in families:
            count = different[quantity, against]
            low, high = proportion_interval(count, repeats)
            deviation = stdev(values[quantity])
            checks.append(
                AACheck(quantity, title, against, seeds, repeats, count, low, high, max_allowed(repeats), deviation)
            )
    return checks


def _find_differences(records: Sequence[RunRecord]) -> set[tuple[Quantity, Against]]:
    """The families of comparisons in which anything is called different."""
    summaries = summarise(records, None, "name 1")
    comparisons = {
        "metric": [s.metric_comparison for s in summaries],
        "gap": [s.gap_comparison for s in summaries],
    }
    found: set[tuple[Quantity, Against]] = set()
    quantity: Quantity
    for quantity in ("metric", "gap"):
        if any(c and c.verdict in ("better", "worse") for c in comparisons[quantity]):
            found.add((quantity, "the reference"))
        if any(standing.is_worse for standing in decide(summaries, Limits(), quantity).first.standings):
            found.add((quantity, "the best"))
    return found


def _copy_run(sample: RunRecord, name: str, seed: int, score: float, gap: float) -> RunRecord:
    """The sample with another name, seed, score (in steps of one test item, where it is a share) and gap."""
    results = sample.results
    assert results is not None
    if results.higher_is_better:
        score = min(1.0, max(0.0, round(score * results.test.examples) / results.test.examples))
    metrics = {**results.test.metrics, results.metric: score}
    test = results.test.model_copy(update={"loss": results.train.loss + gap, "metrics": metrics})
    method = sample.spec.method.model_copy(update={"title": name})
    return sample.model_copy(
        update={
            "spec": sample.spec.model_copy(update={"method": method, "seed": seed}),
            "results": results.model_copy(update={"test": test}),
        }
    )


def _draw(random_: random.Random, values: Sequence[float]) -> float:
    return random_.gauss(fmean(values), stdev(values))
