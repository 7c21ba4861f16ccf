"""The A/A check: one method against itself under several names, through everything that a comparison goes through.

What calls a method different from itself calls other differences too often as well. The promise of a 95 % level is one
time in twenty; in 200 repeats that is 10, and 19 or fewer in 997 of 1,000 such checks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from tunewise.advise.decision import Limits, decide
from tunewise.advise.statistics import Comparison, compare_to_reference, proportion_interval
from tunewise.advise.summary import summarise
from tunewise.errors import SpecError
from tunewise.store.records import RunRecord
from tunewise.text_format import pluralize

_LEVEL = 0.05
_SURE = 0.997

Of = Literal["metric", "gap"]
Against = Literal["the reference", "the best", "each other"]


@dataclass(frozen=True)
class AACheck:
    """How often one method was called different from itself. `low` and `high`: 95 % interval of the rate (Clopper and
    Pearson), None where the repeats share runs; `allowed`: the most for which the promise is not in doubt; `spread`:
    standard deviation over seeds of the runs it rests on. Without any, nothing was checked."""

    of: Of
    name: str
    against: Against
    seeds: int
    repeats: int
    called: int
    low: float | None
    high: float | None
    allowed: int
    spread: float

    @property
    def rate(self) -> float:
        return self.called / self.repeats

    @property
    def holds(self) -> bool:
        return self.called <= self.allowed


def allowed(repeats: int) -> int:
    """The least count c with P(X <= c) >= 0.997 for X ~ Binomial(repeats, 0.05): 19 of 200."""
    from scipy.special import bdtr

    return next(c for c in range(repeats + 1) if float(bdtr(c, repeats, _LEVEL)) >= _SURE)


def check_by_simulation(
    runs: Sequence[RunRecord], seeds: int, repeats: int = 200, names: int = 2, draw: int = 0
) -> list[AACheck]:
    """The check for the test metric and for the gap, on runs drawn with the mean and the spread over seeds of the
    finished `runs` of one method (normal; a share in whole test items).

    Each repeat makes `seeds` runs under each of `names` names and summarises and decides on them as on any others.
    Counted apart are the two families of statements that a comparison makes, each at its own 95 %: verdicts against
    the reference, and methods called worse than the best. Of two names they are one and the same.

    Raises `SpecError` for fewer than two finished runs, two seeds or two names.
    """
    done = [r for r in runs if r.status == "done" and r.results is not None]
    if len(done) < 2:
        raise SpecError(f"{pluralize(len(done), 'finished run')} have no spread; at least 2 are needed")
    if seeds < 2 or names < 2 or repeats < 1:
        asked = f"{pluralize(seeds, 'seed')}, {pluralize(names, 'name')}, {pluralize(repeats, 'repeat')}"
        raise SpecError(f"{asked}: at least 2, 2 and 1 are needed")
    sample = done[0]
    assert sample.results is not None
    key = sample.results.metric
    scores = [r.results.test.metrics[key] for r in done if r.results]
    gaps = [r.results.gap for r in done if r.results]
    random_ = random.Random(draw)
    different: Counter[tuple[Of, Against]] = Counter()
    for _ in range(repeats):
        drawn = [
            _run(sample, f"name {i + 1}", seed, _near(random_, scores), _near(random_, gaps))
            for i in range(names)
            for seed in range(seeds)
        ]
        called = _called(drawn)
        different.update(called if names > 2 else {(of, "each other") for of, _ in called})
    shown: dict[Of, str] = {"metric": f"test {key.replace('_', ' ')}", "gap": "generalization gap"}
    families: tuple[Against, ...] = ("each other",) if names == 2 else ("the reference", "the best")
    return [
        AACheck(
            of, name, against, seeds, repeats, count, *proportion_interval(count, repeats), allowed(repeats), spread
        )
        for of, name in shown.items()
        for spread in [stdev(scores if of == "metric" else gaps)]
        for against in families
        for count in [different[of, against]]
    ]


def check_by_splitting(
    scores: Mapping[int, float], higher_is_better: bool, resolution: float, name: str, repeats: int = 200
) -> AACheck:
    """The check on the runs as they are: their seeds are split at random into two halves that stand for two methods,
    `repeats` times. The splits share runs, so the rate describes and has no interval. Raises `SpecError` for fewer
    than 4 seeds."""
    if len(scores) < 4:
        raise SpecError(f"{len(scores)} seeds can't be split in two halves of 2; run more seeds, or leave out --real")
    half = len(scores) // 2
    draw = random.Random(0)
    called = 0
    for _ in range(repeats):
        mixed = draw.sample(sorted(scores), 2 * half)
        halves = {
            "first": {i: scores[seed] for i, seed in enumerate(mixed[:half])},
            "second": {i: scores[seed] for i, seed in enumerate(mixed[half:])},
        }
        (found,) = compare_to_reference(halves, "first", higher_is_better, resolution=resolution)
        called += found.verdict != "no difference seen"
    return AACheck(
        "metric", name, "each other", half, repeats, called, None, None, allowed(repeats), stdev(scores.values())
    )


def _called(records: Sequence[RunRecord]) -> set[tuple[Of, Against]]:
    """In which families of statements anything is called different."""
    summaries = summarise(records, None, "name 1")
    verdicts: dict[Of, list[Comparison | None]] = {
        "metric": [s.metric_comparison for s in summaries],
        "gap": [s.gap_comparison for s in summaries],
    }
    found: set[tuple[Of, Against]] = set()
    for of, comparisons in verdicts.items():
        if any(c and c.verdict in ("better", "worse") for c in comparisons):
            found.add((of, "the reference"))
        if any(standing.is_worse for standing in decide(summaries, Limits(), of).standings):
            found.add((of, "the best"))
    return found


def _run(sample: RunRecord, name: str, seed: int, score: float, gap: float) -> RunRecord:
    results = sample.results
    assert results is not None
    if results.higher_is_better:  # in whole items, as a test set gives them
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


def _near(draw: random.Random, values: Sequence[float]) -> float:
    return draw.gauss(fmean(values), stdev(values))
