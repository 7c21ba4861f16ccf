"""The comparison table: a row for each method, with places and ties, before it is formatted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from tunewise import number_format as numbers
from tunewise.advise.marks import MARKS
from tunewise.advise.pooled_variance import compare_to_best, estimate_variances
from tunewise.advise.recommend import Recommendation
from tunewise.advise.statistics import Comparison, Interval
from tunewise.advise.summary import MethodSummary
from tunewise.number_format import metric_name
from tunewise.store.records import CostRecord, CostReport
from tunewise.text_format import pluralize

SAME_PEAK = 1.05
"""Within this factor two peak memories are tied, as for the recommendation."""
SAME_SAVED = 1.01
LAST_PLACE = 3

Standing = Literal["better", "worse", "same", "reference", "unknown"]


@dataclass(frozen=True)
class Place:
    rank: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.rank}=" if self.shared else str(self.rank)


@dataclass(frozen=True)
class Column:
    """`short`: its title in a terminal; `name`: in CSV; `bounded`: whether its values have intervals."""

    key: str
    title: str
    unit: str
    short: str
    name: str
    bounded: bool = False


@dataclass(frozen=True)
class Cell:
    """`text`, and `extra` below it; the numbers are unrounded."""

    text: str = numbers.MISSING
    extra: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Row:
    """A method, or a reference line without places: the score of no learning, or one of the cost probe."""

    method: str
    cells: dict[str, Cell]
    standing: Standing = "unknown"
    verdict: str = numbers.MISSING
    verdict_detail: str = ""
    runs: str = ""
    marks: tuple[str, ...] = ()
    chosen: bool = False
    efficient: bool = False
    reference_line: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    columns: list[Column]
    rows: list[Row]
    metric: str
    reference: str
    is_share: bool = True
    """The test metric is shown in per cent, and more of it is better."""
    legend: list[str] = field(default_factory=list)


def build_table(
    summaries: Sequence[MethodSummary],
    recommendation: Recommendation | None = None,
    costs: CostReport | None = None,
) -> ComparisonTable:
    """Rows in the order of `summaries`, then the reference lines."""
    if not summaries:
        return ComparisonTable([], [], "", "")
    first = summaries[0]
    timed = {s.label: s.cost for s in summaries if s.cost}
    columns = _columns(first, bool(timed))
    places = _places(summaries, timed)
    rows = [_row(s, {key: of.get(s.label) for key, of in places.items()}, recommendation) for s in summaries]
    labels = {row.method for row in rows}
    for line in costs.rows if costs else []:
        if line.reference_line and line.method not in labels:
            cells = {column.key: Cell() for column in columns}
            cells |= {"trainable": _count(line.trainable, None), **_cost_cells(line, {})}
            rows.append(Row(line.method, cells, verdict="cost only", reference_line=True))
    legend = _legend(first, bool(timed)) if len(rows) > 1 else []
    legend = [*explain_marks(summaries), *legend]
    if (floor := next((s.floor for s in summaries if s.floor), None)) is not None:
        cells = {column.key: Cell() for column in columns}
        cells["metric"] = Cell(numbers.score(floor.score, first.is_share), value=floor.score)
        rows.insert(len(summaries), Row("no learning", cells, verdict=f"the {floor.of}", reference_line=True))
    if any(len(s.seeds) == 2 for s in summaries):
        legend.append(numbers.TWO_SEEDS)
    return ComparisonTable(columns, rows, first.metric, first.reference, first.is_share, legend)


def _columns(first: MethodSummary, timed: bool) -> list[Column]:
    metric, share, interval = first.metric, first.is_share, "mean ± 95 % interval"
    name, short = metric_name(metric), f"test{' %' * share}\n{metric_name(metric)}"
    unit = "%" if share else "higher is better" if first.higher_is_better else "lower is better"
    columns = [
        Column("metric", f"test {name}", f"{unit}, {interval}", short, f"test_{metric}", bounded=True),
        Column("gap", "generalization gap", f"nats, {interval}", "gap\nnats", "generalization_gap_nats", bounded=True),
        Column("trainable", "trained parameters", "head included", "trained", "trained_parameters"),
    ]
    if timed:
        columns += [
            Column("step", "step time", "× frozen floor", "step\n× floor", "step_seconds", bounded=True),
            Column("kept", "kept for backward", "one batch", "kept", "kept_for_backward_bytes"),
            Column("peak", "peak memory", "of training", "peak", "peak_memory_bytes"),
        ]
    return columns


def _places(summaries: Sequence[MethodSummary], timed: Mapping[str, CostRecord]) -> dict[str, dict[str, Place]]:
    first = summaries[0]
    resolution = 1 / first.test_items if first.test_items and first.is_share else 0.0
    metric = {s.label: s.metric_by_seed for s in summaries}
    return {
        "trainable": by_size({s.label: s.trainable for s in summaries}),
        "metric": by_seed(metric, first.higher_is_better, resolution),
        "gap": by_seed({s.label: s.gap_by_seed for s in summaries}, False),
        "step": by_step_time(timed),
        "kept": by_size({label: cost.saved_bytes for label, cost in timed.items()}, SAME_SAVED),
        "peak": by_size({label: cost.peak_bytes for label, cost in timed.items()}, SAME_PEAK),
    }


def by_seed(
    scores: Mapping[str, Mapping[int, float]], higher_is_better: bool, resolution: float = 0.0
) -> dict[str, Place]:
    """Places by mean over seeds; variance outliers have none. Tied: not shown to be worse than the leader at 95 %."""
    means = {name: sum(seeds.values()) / len(seeds) for name, seeds in scores.items() if seeds}
    compared = {name: scores[name] for name in means}
    order = sorted(means, key=lambda name: (-means[name] if higher_is_better else means[name], name))
    variances = estimate_variances(compared, resolution)
    outliers = variances.outliers if variances else ()
    order = [name for i, name in enumerate(order) if i == 0 or name not in outliers]

    def tied(leader: str) -> set[str]:
        comparisons = compare_to_best(compared, leader, higher_is_better, resolution=resolution)
        return {c.name for c in comparisons if c.verdict != "worse"}

    return _shared_places(order, tied)


def by_step_time(costs: Mapping[str, CostRecord]) -> dict[str, Place]:
    """Places by step time. Tied: the intervals of the ratios to the frozen floor overlap."""
    order = sorted(costs, key=lambda name: (costs[name].ratio_to_floor, name))
    return _shared_places(order, lambda leader: {n for n in order if costs[n].ratio_low <= costs[leader].ratio_high})


def by_size(values: Mapping[str, int | None], slack: float = 1.0) -> dict[str, Place]:
    """Places by a size, smallest first. Tied: at most `slack` times the leader's."""
    sizes = {name: value for name, value in values.items() if value is not None}
    order = sorted(sizes, key=lambda name: (sizes[name], name))
    return _shared_places(order, lambda leader: {n for n in order if sizes[n] <= slack * sizes[leader]})


def _shared_places(order: list[str], tied: Callable[[str], set[str]]) -> dict[str, Place]:
    """Places of the names in `order`, best first; tied names share a place, `1=`, and the next comes after them."""
    if len(order) < 2:
        return {}
    places: dict[str, Place] = {}
    left = list(order)
    while left and len(places) < LAST_PLACE:
        ties = tied(left[0]) if len(left) > 1 else set()
        group = [left[0], *(name for name in left[1:] if name in ties)]
        places |= dict.fromkeys(group, Place(len(places) + 1, len(group) > 1))
        left = [name for name in left if name not in group]
    return places


def _row(summary: MethodSummary, places: Mapping[str, Place | None], recommendation: Recommendation | None) -> Row:
    standing, verdict, detail = _verdict(summary)
    score, widest = partial(numbers.score, share=summary.is_share), numbers.widest(summary.metric, summary.is_share)
    cells = {
        "trainable": _count(summary.trainable, places["trainable"]),
        "metric": _interval(summary.test_metric, places["metric"], score, widest=widest),
        "gap": _interval(summary.gap, places["gap"], numbers.nats, _gap_to_reference(summary)),
        **_cost_cells(summary.cost, places),
    }
    return Row(
        method=summary.label,
        cells=cells,
        standing=standing,
        verdict=verdict,
        verdict_detail=detail,
        runs=_runs(summary),
        marks=tuple(mark.name for mark in summary.marks),
        chosen=recommendation is not None and summary.label == recommendation.choice,
        efficient=recommendation is not None and summary.label in recommendation.pareto,
    )


def _count(value: int | None, place: Place | None) -> Cell:
    return Cell(numbers.count(value), value=value, place=place)


def _interval(
    interval: Interval | None,
    place: Place | None,
    shown: Callable[[float], str],
    extra: str = "",
    widest: float | None = None,
) -> Cell:
    if interval is None:
        return Cell()
    text = shown(interval.mean) + numbers.plus_minus(interval.half_width, shown, widest)
    return Cell(text, extra, interval.mean, interval.low, interval.high, place)


def _cost_cells(cost: CostRecord | None, places: Mapping[str, Place | None]) -> dict[str, Cell]:
    if cost is None:
        return {"step": Cell(), "kept": Cell(), "peak": Cell()}
    step, ratio = cost.step, numbers.ratio(cost.ratio_to_floor)
    return {
        "step": Cell(numbers.seconds(step.median), ratio, step.median, step.low, step.high, places.get("step")),
        "kept": Cell(numbers.memory(cost.saved_bytes), value=cost.saved_bytes, place=places.get("kept")),
        "peak": Cell(numbers.memory(cost.peak_bytes), value=cost.peak_bytes, place=places.get("peak")),
    }


def _verdict(summary: MethodSummary) -> tuple[Standing, str, str]:
    if summary.is_reference:
        return "reference", "the reference", ""
    comparison = summary.metric_comparison
    if comparison is None or comparison.verdict == "not tested":
        return "unknown", "not tested", "" if summary.seeds else "no finished run"
    standing: Standing = "same"
    if comparison.verdict in ("better", "worse"):
        standing = "better" if comparison.verdict == "better" else "worse"
    widest = numbers.widest(summary.metric, summary.is_share)
    return standing, comparison.verdict, _difference(comparison, summary.is_share, widest)


def _difference(comparison: Comparison, share: bool, widest: float | None) -> str:
    if comparison.difference is None:
        return ""
    mean = numbers.score_difference(comparison.difference.mean, share)
    if comparison.low is None or comparison.high is None:
        return mean
    low, high = (numbers.difference_end(end, share, widest) for end in (comparison.low, comparison.high))
    return f"{mean} ({low} to {high})"


def _gap_to_reference(summary: MethodSummary) -> str:
    """`0.70 × lora's, smaller`; smaller and larger only where a test shows it."""
    if summary.is_reference or summary.gap is None:
        return ""
    verdict = summary.gap_comparison.verdict if summary.gap_comparison else ""
    shown = {"better": "smaller", "worse": "larger"}.get(verdict, "")
    if summary.gap_ratio is None:
        return f"{shown} than {summary.reference}'s" if shown else ""
    times = f"{summary.gap_ratio.mean:.2f} × {summary.reference}'s"
    return f"{times}, {shown}" if shown else times


def _runs(summary: MethodSummary) -> str:
    lost = ", ".join(f"{count} {status}" for status, count in sorted(summary.missing.items()))
    seeds = pluralize(len(summary.seeds), "seed")
    return f"{seeds}; {lost}" if lost else seeds


def explain_marks(summaries: Sequence[MethodSummary]) -> list[str]:
    """A line for each mark that a row bears."""
    marks = [mark for mark in MARKS if any(mark in s.marks for s in summaries)]
    return [f"{mark.name}: {mark.meaning}." for mark in marks]


def _legend(first: MethodSummary, timed: bool) -> list[str]:
    reference, share = first.reference, first.is_share
    but_one = " in all but the test metric" * first.higher_is_better
    costs = "; for step times by overlapping intervals; peak memory within 5 %, bytes kept within 1 %" * timed
    legend = [
        f"1, 2, 3: first, second and third of a column; the smallest is first{but_one}. "
        "A shared place, 1=, means that no difference from the leader of its group is shown: for the test metric and "
        "the gap over all pairs at once (95 %; Tukey's range with pooled variances over seeds, a method's own variance "
        f"where it is larger, and the pair's own paired t test){costs}. A method with a far larger variance than the "
        "others (Cochran's C, 1 %) has no place there unless its mean is the best.",
        f"Against {reference}: difference of the test metric{' in points' * share}, paired by seed, with its "
        f"Holm-corrected 95 % interval. “Better” and “worse” appear only where that interval excludes zero, and "
        f"“smaller” and “larger” of a gap by the same rule.",
    ]
    if timed:
        legend.append(
            "Times and memory come from the cost probe, not from the training runs. The frozen floor is the "
            "same model with gradients flowing through the same layers and nothing adapted: no method on them "
            "is faster."
        )
    return legend
