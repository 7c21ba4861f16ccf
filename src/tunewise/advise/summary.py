"""One row a method: its finished runs over seeds, its costs, and its comparison with the reference.

Only finished runs with finite results enter a mean; the others are counted by status.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tunewise.advise.items import ItemComparison, ItemScores, Predictions, compare_by_item, compare_item_scores
from tunewise.advise.marks import MARKS, Mark
from tunewise.advise.pooled_variance import estimate_variances
from tunewise.advise.statistics import (
    Comparison,
    Interval,
    compare_to_reference,
    item_standard_error,
    mean_interval,
    ratio_interval,
)
from tunewise.errors import SpecError, StoreError, suggest_nearest
from tunewise.number_format import is_share
from tunewise.store.records import CostRecord, CostReport, Floor, Results, RunRecord, TuningReport

LEAST_FALL = 0.01
"""A loss, error or perplexity that fell by a smaller part than this did not fall."""
STILL_FALLING = 0.05
"""Training longer is advised where the last epoch lowered the validation loss by more than this part."""


@dataclass(frozen=True)
class MethodSummary:
    """A method over its seeds. Losses and gap in nats; intervals are 95 % t intervals, None without a finished run.

    `gap_ratio` is the gap over the reference's. Comparisons with the reference are None for the reference itself.
    """

    label: str
    name: str  # in the catalog of methods
    metric: str
    higher_is_better: bool  # of the test metric
    reference: str
    seeds: tuple[int, ...]  # of the finished runs
    missing: dict[str, int]  # number of runs by status that entered no mean
    metric_by_seed: dict[int, float]
    gap_by_seed: dict[int, float]
    test_metric: Interval | None
    gap: Interval | None
    gap_ratio: Interval | None
    train_loss: Interval | None
    validation_loss: Interval | None
    test_loss: Interval | None
    seconds: Interval | None  # of a complete run
    steps: int | None  # optimizer steps of one run
    trainable: int | None
    test_items: int | None
    floor: Floor | None  # the test metric of no learning
    never_fell: bool
    untuned: bool
    rate_at_edge: bool
    still_falling: bool
    disagrees: bool
    cost: CostRecord | None
    metric_comparison: Comparison | None
    gap_comparison: Comparison | None
    item_comparison: ItemComparison | None = None  # with the reference, where predictions were read

    @property
    def is_reference(self) -> bool:
        return self.label == self.reference

    @property
    def is_share(self) -> bool:
        """Whether the test metric is shown in per cent."""
        return is_share(self.metric, self.higher_is_better)

    @property
    def merit(self) -> float:
        """The mean test metric, its sign turned where lower is better; minus infinity without a finished run."""
        if self.test_metric is None:
            return -math.inf
        return self.test_metric.mean if self.higher_is_better else -self.test_metric.mean

    @property
    def learned_nothing(self) -> bool:
        """Whether its mean is no better than without learning; of a perplexity or an error, less than 1 % better."""
        if self.test_metric is None or self.floor is None:
            return False
        floor = self.floor.score
        mean = self.test_metric.mean
        return mean <= floor if self.higher_is_better else mean > (1 - LEAST_FALL) * floor

    @property
    def marks(self) -> list[Mark]:
        """What a reader should know of its runs."""
        return [mark for mark in MARKS if getattr(self, mark.key)]

    @property
    def training_seconds(self) -> float | None:
        """Optimizer steps times the cost probe's median step; without a probe, the mean time of complete runs."""
        if self.cost and self.steps:
            return self.steps * self.cost.step.median
        return self.seconds.mean if self.seconds else None

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of the cost probe, the model included."""
        return self.cost.peak_bytes if self.cost else None

    @property
    def saved_bytes(self) -> int | None:
        """Bytes that the probe's forward keeps for the backward."""
        return self.cost.saved_bytes if self.cost else None


def summarise(
    records: Sequence[RunRecord],
    costs: CostReport | None,
    reference: str,
    metric: str | None = None,
    tuning: TuningReport | None = None,
) -> list[MethodSummary]:
    """One summary a method, in the order of `records`; `metric` is a key of the test metrics, the main one by default.

    Where no run of `reference` finished, the first method with a finished run takes its place. Raises `SpecError` for
    runs that don't belong in one table, and `StoreError` for a damaged record.
    """
    if not records:
        raise SpecError("there are no runs to summarise; run `tunewise compare` first")
    runs = _finished_runs(records)
    finished = [(record, _results(record)) for by_seed in runs.values() for record in by_seed.values()]
    metric = _check_metric([results for _, results in finished], metric)
    with_runs = [label for label, by_seed in runs.items() if by_seed]
    if reference not in with_runs:
        reference = with_runs[0] if with_runs else next(iter(runs))

    def scores(value: Callable[[Results], float]) -> dict[str, dict[int, float]]:
        return {label: {seed: value(_results(r)) for seed, r in by_seed.items()} for label, by_seed in runs.items()}

    metrics, gaps = scores(lambda r: r.test.metrics[metric]), scores(lambda r: r.gap)
    items = finished[0][1].items or finished[0][1].test.examples if finished else None
    higher = not any(metric in results.lower_is_better for _, results in finished)
    resolution = 1 / items if items and higher else 0.0
    on_metric = {c.name: c for c in compare_to_reference(metrics, reference, higher, resolution=resolution)}
    on_gap = {c.name: c for c in compare_to_reference(gaps, reference, False)}
    rows = {row.method: row for row in costs.rows} if costs else {}
    floor = next((results.floor[metric] for _, results in finished if metric in results.floor), None)  # trials: none
    searches = {search.method: search for search in tuning.methods} if tuning else {}
    disagreeing = _disagreeing(metrics, floor, items if higher else None, higher)

    def summary(label: str, by_seed: dict[int, RunRecord]) -> MethodSummary:
        done = list(by_seed.values())
        results = [_results(r) for r in done]
        cost, search = rows.get(label), searches.get(label)
        facts = next((r.model for r in done if r.model), None)
        return MethodSummary(
            label=label,
            name=next(r.spec.method.name for r in records if r.spec.method.label == label),
            metric=metric,
            higher_is_better=higher,
            reference=reference,
            seeds=tuple(by_seed),
            missing=_count_missing(records, label, by_seed),
            metric_by_seed=metrics[label],
            gap_by_seed=gaps[label],
            test_metric=_over_seeds(list(metrics[label].values())),
            gap=_over_seeds(list(gaps[label].values())),
            gap_ratio=ratio_interval(gaps[label], gaps[reference]),
            train_loss=_over_seeds([r.train.loss for r in results]),
            validation_loss=_over_seeds([r.validation.loss for r in results]),
            test_loss=_over_seeds([r.test.loss for r in results]),
            seconds=_over_seeds([r.seconds for r in done]),
            steps=next((_steps(r) for r in done if r.data), None),
            trainable=facts.trainable if facts else cost.trainable if cost else None,
            test_items=items,
            floor=floor,
            never_fell=_most(_never_fell(r) for r in results),
            untuned=any(r.spec.given_rate is None for r in done) or bool(search and search.failed),
            rate_at_edge=bool(search and search.edge),
            still_falling=_most(_is_still_falling(r) for r in results),
            disagrees=label in disagreeing,
            cost=cost,
            metric_comparison=on_metric.get(label),
            gap_comparison=on_gap.get(label),
        )

    return [summary(label, by_seed) for label, by_seed in runs.items()]


def add_item_comparisons(
    summaries: Sequence[MethodSummary],
    predictions: Mapping[str, Mapping[int, Predictions]],
    scores: Mapping[str, Mapping[int, ItemScores]] | None = None,
) -> list[MethodSummary]:
    """The summaries with their comparison with the reference over test items: from predicted classes, or from the
    scores of generated answers, by label and seed."""
    scores = scores or {}
    compared = []
    for summary in summaries:
        comparison = None
        label, reference = summary.label, summary.reference
        try:
            if label in predictions and reference in predictions:
                comparison = compare_by_item(predictions[label], predictions[reference], summary.metric)
            elif label in scores and reference in scores:
                comparison = compare_item_scores(scores[label], scores[reference])
        except ValueError as error:
            raise StoreError(f"predictions of {label} and {reference}: {error}") from None
        compared.append(replace(summary, item_comparison=None if summary.is_reference else comparison))
    return compared


def _finished_runs(records: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Finished runs by label and seed; a label without one has an empty row."""
    runs: dict[str, dict[int, RunRecord]] = {r.spec.method.label: {} for r in records}
    first: RunRecord | None = None
    for record in records:
        if record.status == "done" and record.results is None:
            raise StoreError(f"run {record.id} is marked done but has no results; delete its folder and run it again")
        if record.status != "done" or not _is_finite(_results(record)):
            continue
        first = first or record
        if _subject(record) != _subject(first):
            raise SpecError(
                f"runs {first.id} and {record.id} have different models, data or test splits and "
                f"can't be in one table; give the runs of one comparison"
            )
        label, seed = record.spec.method.label, record.spec.seed
        earlier = runs[label].setdefault(seed, record)
        if earlier.id != record.id:
            raise SpecError(
                f"{label!r} has two finished runs at seed {seed} ({earlier.id} and {record.id}); give "
                f"the runs of one comparison"
            )
    return {label: dict(sorted(by_seed.items())) for label, by_seed in runs.items()}


def _results(record: RunRecord) -> Results:
    assert record.results is not None
    return record.results


def _is_finite(results: Results) -> bool:
    splits = (results.train, results.validation, results.test)
    return all(math.isfinite(v) for s in splits for v in (s.loss, *s.metrics.values()))


def _subject(record: RunRecord) -> tuple[str, str, str, int]:
    """What must be the same for two runs to be compared: task, model, data and size of the test split."""
    spec = record.spec
    return (
        spec.task,
        spec.model.digest or spec.model.path,
        spec.data.digest or spec.data.path,
        _results(record).test.examples,
    )


def _count_missing(records: Sequence[RunRecord], label: str, by_seed: dict[int, RunRecord]) -> dict[str, int]:
    """Runs by status that entered no mean; a failed run counts only while no other run of its seed is done."""
    missing = [r for r in records if r.spec.method.label == label and r.spec.seed not in by_seed]
    return dict(Counter("diverged" if r.status == "done" else r.status for r in missing))


def _check_metric(results: Sequence[Results], metric: str | None) -> str:
    if not results:
        return metric or "accuracy"
    metric = metric or results[0].metric
    for result in results:
        if metric not in result.test.metrics:
            raise SpecError(
                f"the runs have no test metric {metric!r}{suggest_nearest(metric, result.test.metrics.keys())}"
            )
    return metric


def _steps(record: RunRecord) -> int:
    assert record.data is not None
    return record.spec.training.steps(record.data.train)


def _most(values: Iterable[bool]) -> bool:
    listed = list(values)
    return 2 * sum(listed) > len(listed)


def _never_fell(results: Results) -> bool:
    first = results.epochs[0].train if results.epochs else None
    return first is not None and results.train.loss > (1 - LEAST_FALL) * first


def _is_still_falling(results: Results) -> bool:
    if len(results.epochs) < 2 or results.selected_epoch < results.epochs[-1].epoch:
        return False
    before, last = (epoch.validation for epoch in results.epochs[-2:])
    return last < (1 - STILL_FALLING) * before


def _disagreeing(
    scores: Mapping[str, Mapping[int, float]], floor: Floor | None, items: int | None, higher_is_better: bool
) -> set[str]:
    """Methods whose scores at different seeds differ more than the means of the methods that learned something, and
    than +-2 standard errors of the choice of test items; or far more than those of the other methods."""
    sign = 1 if higher_is_better else -1
    least = -math.inf if floor is None else sign * floor.score
    means = {label: fmean(row.values()) for label, row in scores.items() if row}
    learned = {label: mean for label, mean in means.items() if sign * mean > least}
    differ = max(learned.values()) - min(learned.values()) if learned else 0.0
    variances = estimate_variances(scores, 1 / items if items else 0.0)
    disagreeing = set(variances.outliers) if variances else set()
    for label, mean in learned.items():
        noise = 4 * item_standard_error(mean, items) if items else LEAST_FALL * abs(mean)
        if max(scores[label].values()) - min(scores[label].values()) > max(differ, noise):
            disagreeing.add(label)
    return disagreeing


def _over_seeds(values: list[float]) -> Interval | None:
    return mean_interval(values) if values else None
