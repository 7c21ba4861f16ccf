"""The comparison as neutral rows: what the table says, before anyone decides how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from tunewise import number_format as numbers
from tunewise.advise.recommend import Recommendation
from tunewise.advise.statistics import Comparison, Interval
from tunewise.advise.summary import MethodSummary
from tunewise.report.places import Place, by_seed, by_size, by_step_time
from tunewise.store.records import CostRecord, CostReport

# Within these factors two memories are tied; the recommendation takes them for equal too.
SAME_PEAK = 1.05
SAME_SAVED = 1.01

Standing = Literal["better", "worse", "same", "reference", "unknown"]


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    unit: str


@dataclass(frozen=True)
class Cell:
    """`text` and `extra` (smaller, below) for people; the numbers behind them unrounded."""

    text: str = numbers.MISSING
    extra: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Row:
    """One method, or a reference line of the cost probe (no quality, no places)."""

    method: str
    cells: dict[str, Cell]
    standing: Standing = "unknown"
    verdict: str = numbers.MISSING
    verdict_detail: str = ""
    runs: str = ""
    chosen: bool = False
    efficient: bool = False
    reference_line: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    columns: list[Column]
    rows: list[Row]
    metric: str
    reference: str
    is_share: bool = True  # the test metric is shown as per cent, and more of it is better
    legend: list[str] = field(default_factory=list)


def build_table(
    summaries: Sequence[MethodSummary],
    recommendation: Recommendation | None = None,
    costs: CostReport | None = None,
) -> ComparisonTable:
    """Rows in the order of `summaries`; the cost probe's reference lines, where given, come last."""
    if not summaries:
        return ComparisonTable([], [], "", "")
    metric, reference = summaries[0].metric, summaries[0].reference
    items, higher, share = summaries[0].test_items, summaries[0].higher_is_better, summaries[0].is_share
    timed = {s.label: s.cost for s in summaries if s.cost}
    given = {
        "trainable": by_size({s.label: s.trainable for s in summaries}),
        "metric": by_seed(
            {s.label: s.metric_by_seed for s in summaries}, higher, 1 / items if items and share else 0.0
        ),
        "gap": by_seed({s.label: s.gap_by_seed for s in summaries}, False),
        "step": by_step_time(timed),
        "kept": by_size({name: cost.saved_bytes for name, cost in timed.items()}, SAME_SAVED),
        "peak": by_size({name: cost.peak_bytes for name, cost in timed.items()}, SAME_PEAK),
    }
    columns = [
        Column("metric", f"test {metric_name(metric)}", f"{'%' if share else 'lower is better'}, mean ± 95 % interval"),
        Column("gap", "generalization gap", "nats, mean ± 95 % interval"),
        Column("trainable", "trained parameters", "head included"),
    ]
    if timed:
        columns += [
            Column("step", "step time", "× frozen floor"),
            Column("kept", "kept for backward", "one batch"),
            Column("peak", "peak memory", "of training"),
        ]
    if any(cost.joules is not None for cost in timed.values()):
        columns.append(Column("energy", "energy", "a step"))
    rows = [_row(s, {key: found.get(s.label) for key, found in given.items()}, recommendation) for s in summaries]
    known = {row.method for row in rows}
    for line in costs.rows if costs else []:
        if line.reference_line and line.method not in known:
            cells = {column.key: Cell() for column in columns}
            cells |= {"trainable": _count(line.trainable, None), **_cost_cells(line, {})}
            rows.append(Row(line.method, cells, verdict="cost only", reference_line=True))
    legend = _legend(reference, share, bool(timed)) if len(rows) > 1 else []
    if any(len(s.seeds) == 2 for s in summaries):
        legend.append(numbers.TWO_SEEDS)
    return ComparisonTable(columns, rows, metric, reference, share, legend)


def metric_name(metric: str) -> str:
    """`macro_f1` as a person writes it."""
    return metric.replace("_", " ")


def _row(summary: MethodSummary, place: dict[str, Place | None], recommendation: Recommendation | None) -> Row:
    standing, verdict, detail = _verdict(summary)
    cells = {
        "trainable": _count(summary.trainable, place["trainable"]),
        "metric": _interval(
            summary.test_metric,
            place["metric"],
            partial(numbers.score, share=summary.is_share),
            widest=numbers.widest(summary.metric, summary.is_share),
        ),
        "gap": _interval(summary.gap, place["gap"], numbers.nats, _gap_beside_reference(summary)),
        **_cost_cells(summary.cost, place),
    }
    return Row(
        method=summary.label,
        cells=cells,
        standing=standing,
        verdict=verdict,
        verdict_detail=detail,
        runs=_runs(summary),
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


def _cost_cells(cost: CostRecord | None, place: dict[str, Place | None]) -> dict[str, Cell]:
    if cost is None:
        return {"step": Cell(), "kept": Cell(), "peak": Cell(), "energy": Cell()}
    step = cost.step
    return {
        "step": Cell(
            numbers.seconds(step.median),
            numbers.ratio(cost.ratio_to_floor),
            step.median,
            step.low,
            step.high,
            place.get("step"),
        ),
        "kept": Cell(numbers.memory(cost.saved_bytes), value=cost.saved_bytes, place=place.get("kept")),
        "peak": Cell(numbers.memory(cost.peak_bytes), value=cost.peak_bytes, place=place.get("peak")),
        "energy": Cell(numbers.energy(cost.joules), value=cost.joules),
    }


def _verdict(summary: MethodSummary) -> tuple[Standing, str, str]:
    if summary.is_reference:
        return "reference", "the reference", ""
    on_metric = summary.metric_comparison
    if on_metric is None or on_metric.verdict == "not tested":
        return "unknown", "not tested", "" if summary.seeds else "no finished run"
    standing: Standing = "same"
    if on_metric.verdict in ("better", "worse"):
        standing = "better" if on_metric.verdict == "better" else "worse"
    return (
        standing,
        on_metric.verdict,
        _difference(on_metric, summary.is_share, numbers.widest(summary.metric, summary.is_share)),
    )


def _difference(comparison: Comparison, share: bool, widest: float | None) -> str:
    if comparison.difference is None:
        return ""
    mean = numbers.score_difference(comparison.difference.mean, share)
    if comparison.low is None or comparison.high is None:
        return mean
    low, high = (numbers.difference_end(end, share, widest) for end in (comparison.low, comparison.high))
    return f"{mean} ({low} to {high})"


def _gap_beside_reference(summary: MethodSummary) -> str:
    """`0.70 × lora's, smaller`; smaller and larger only where that was shown."""
    if summary.is_reference or summary.gap is None:
        return ""
    times = f"{summary.gap_ratio.mean:.2f} × {summary.reference}'s" if summary.gap_ratio else ""
    verdict = summary.gap_comparison.verdict if summary.gap_comparison else ""
    shown = {"better": "smaller", "worse": "larger"}.get(verdict, "")
    if not times:
        return f"{shown} than {summary.reference}'s" if shown else ""
    return f"{times}, {shown}" if shown else times


def _runs(summary: MethodSummary) -> str:
    done = len(summary.seeds)
    seeds = f"{done} seed{'' if done == 1 else 's'}"
    lost = ", ".join(f"{count} {status}" for status, count in sorted(summary.missing.items()))
    return f"{seeds}; {lost}" if lost else seeds


def _legend(reference: str, share: bool, timed: bool) -> list[str]:
    costs = "; for step times by overlapping intervals; peak memory within 5 %, bytes kept within 1 %"
    legend = [
        f"1, 2, 3: first, second and third of a column; the smallest is first"
        f"{' in all but the test metric' * share}. A shared place, 1=, means not told apart from "
        "the leader of its group: for the test metric and the gap by all pairs at once (95 %; Tukey's range with the "
        "noise over seeds pooled over the methods, a louder method's own noise for its own pairs, and the pair's own "
        f"paired t test besides){costs if timed else ''}. A method that scatters far more over seeds than the others "
        "(Cochran's C, 1 %) has no place there unless its mean is the best.",
        f"Against {reference}: difference of the test metric{' in points' * share}, paired by seed, with its "
        f"Holm-corrected 95 % interval. “Better” and “worse” are said only where that interval leaves out "
        f"zero, and “smaller” and “larger” of a gap by the same rule.",
    ]
    if timed:
        legend.append(
            "Times and memory come from the cost probe, not from the training runs. The frozen floor is the "
            "same model with gradients flowing through the same layers and nothing adapted: no method on them "
            "is faster."
        )
    return legend
