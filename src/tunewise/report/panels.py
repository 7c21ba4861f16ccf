"""Which figures a report shows: each with its title, its caption, and the same in words for screen readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tunewise import number_format as numbers
from tunewise.advise.recommend import Recommendation
from tunewise.advise.summary import MethodSummary
from tunewise.measures.section_parts import BARS_CAPTION
from tunewise.number_format import metric_name
from tunewise.pages.figures import Bar, bars, learning_curves
from tunewise.pages.palette import Mark
from tunewise.pages.section import Panel
from tunewise.report import curves, figures
from tunewise.report.figures import Point
from tunewise.store.records import CostRecord, CostReport, RunRecord


def cost_panels(
    summaries: Sequence[MethodSummary],
    costs: CostReport | None,
    recommendation: Recommendation | None,
    marks: Mapping[str, Mark],
) -> list[Panel]:
    """Test metric against step time, memory and trained parameters, as far as they were measured."""
    finished = [s for s in summaries if s.test_metric is not None]
    if not finished:
        return []
    metric, share, higher = metric_name(finished[0].metric), finished[0].is_share, finished[0].higher_is_better
    lines = [row for row in costs.rows if row.reference_line] if costs else []

    def panel(
        key: str,
        title: str,
        of: Callable[[MethodSummary], tuple[float, float | None, float | None] | None],
        line: Callable[[CostRecord], float] | None,
        shown: Callable[[float], str],
        unit: str,
    ) -> Panel | None:
        known = [(s, cost) for s in finished if (cost := of(s)) is not None]
        if not known:
            return None
        points = [_point(s, cost, recommendation) for s, cost in known]
        uprights = [(row.method, line(row)) for row in lines] if line else []
        figure = figures.accuracy_against_cost(
            points, marks, cost=title, score=metric, unit=unit, lines=uprights, share=share, higher=higher
        )
        words = "; ".join(
            f"{p.method} {numbers.score(p.score, share)}{' %' * share} at {shown(p.cost)}"
            for p in sorted(points, key=lambda p: p.cost)
        )
        left_out = [s.label for s in finished if of(s) is None]
        missing = f" Not measured: {', '.join(left_out)}." if left_out else ""
        far = sorted(figures.off_scale(points, share, higher))
        scale = (
            f" Far {'below' if higher else 'above'} the others, so at the lower edge: {', '.join(far)}." if far else ""
        )
        caption = f"{scale}{missing}".strip()
        words = f"Test {metric} against {title}. {words}."
        return Panel(f"{key}-figure", f"Test {metric} against {title}", caption, words, figure)

    peaks = all(s.cost and s.cost.peak_bytes for s in finished)
    found = [
        panel(
            "step",
            "step time",
            lambda s: (1e3 * s.cost.step.median, 1e3 * s.cost.step.low, 1e3 * s.cost.step.high) if s.cost else None,
            lambda row: 1e3 * row.step.median,
            lambda value: numbers.seconds(value / 1e3),
            " ms",
        ),
        panel(
            "memory",
            "peak memory" if peaks else "memory kept for the backward",
            lambda s: _memory(s.cost, peaks),
            lambda row: ((row.peak_bytes or 0) if peaks else row.saved_bytes) / 2**20,
            lambda value: numbers.memory(round(value * 2**20)),
            " MiB",
        ),
        panel(
            "parameters",
            "trained parameters",
            lambda s: None if s.trainable is None else (float(s.trainable), None, None),
            None,
            lambda value: numbers.count(round(value)),
            "",
        ),
    ]
    shown = [p for p in found if p is not None]
    first_caption = shown[0].caption if shown else ""
    return shown[:1] + [replace(p, caption="") if p.caption == first_caption else p for p in shown[1:]]


def curve_panels(
    records: Sequence[RunRecord],
    histories: Mapping[str, curves.History],
    summaries: Sequence[MethodSummary],
    marks: Mapping[str, Mark],
) -> list[Panel]:
    """Validation loss, validation metric and training loss of the runs that entered the means."""
    finished = [r for r in finished_runs(records, summaries) if histories.get(r.id)]
    by_method: dict[str, list[curves.History]] = {}
    for record in finished:
        by_method.setdefault(record.spec.method.label, []).append(histories[record.id])
    if not finished:
        return []
    metric = summaries[0].metric
    found = []
    for key, what, drawn in (
        ("validation-loss", "validation loss, nats", curves.validation_curves(by_method)),
        (
            "validation-metric",
            f"validation {metric_name(metric)}",
            curves.validation_curves(by_method, metric),
        ),
        ("training-loss", "training loss, nats", curves.training_curves(by_method)),
    ):
        if not drawn:
            continue
        figure = learning_curves(drawn, marks, y_title=what)
        end = "; ".join(f"{method} {curve.mean[-1]:.4f}" for method, curve in drawn.items())
        title = what.split(",")[0]
        training = key == "training-loss"
        caption = "On the batches as they were trained on, averaged over neighbouring steps." if training else ""
        words = f"{title} over epochs, mean over seeds; at the end: {end}."
        found.append(Panel(f"{key}-figure", title.capitalize(), caption, words, figure, filtered=True))
    return found


def gap_panel(summaries: Sequence[MethodSummary], marks: Mapping[str, Mark]) -> Panel | None:
    """Gaps with intervals and seeds."""
    rows = [Bar(s.label, s.gap.mean, s.gap.low, s.gap.high, sorted(s.gap_by_seed.items())) for s in summaries if s.gap]
    if not rows:
        return None
    gaps = "; ".join(
        f"{row.method} {row.mean:.4f}" + ("" if row.low is None else f" ({row.low:.4f} to {row.high:.4f})")
        for row in rows
    )
    alt_text = f"Generalization gap in nats: {gaps}."
    return Panel("gap-figure", "Generalization gap", BARS_CAPTION, alt_text, bars(rows, marks))


def confusion_panels(
    records: Sequence[RunRecord], summaries: Sequence[MethodSummary], recommendation: Recommendation | None
) -> list[Panel]:
    """One matrix for each method, summed over seeds; collapsed but for the recommended method and the reference."""
    role = {s.reference: " (reference)" for s in summaries}
    if recommendation and recommendation.choice:
        role[recommendation.choice] = " (recommended)"
    by_method: dict[str, list[RunRecord]] = {}
    for record in finished_runs(records, summaries):
        if record.results and record.results.confusion:
            by_method.setdefault(record.spec.method.label, []).append(record)
    found = []
    for place, (method, runs) in enumerate(by_method.items()):
        total = _sum([r.results.confusion for r in runs if r.results and r.results.confusion])
        if not total or len(total) > figures.MOST_CLASSES:
            continue
        labels = runs[0].data.labels if runs[0].data else []
        names = labels if len(labels) == len(total) else [str(i) for i in range(len(total))]
        right, items = sum(total[i][i] for i in range(len(total))), sum(map(sum, total))
        worst = _commonest_error(total, names)
        words = f"Confusion matrix of {method}: {right:,} of {items:,} test items right{worst}."
        seeds = f"{len(runs)} seed{'' if len(runs) == 1 else 's'}"
        found.append(
            Panel(
                f"confusion-figure-{place}",
                f"{method}{role.get(method, '')}",
                f"{right:,} of {items:,} right, {seeds} summed{worst}.",
                words,
                figures.confusion(total, names),
                collapsed=method not in role,
            )
        )
    return sorted(found, key=lambda panel: (panel.collapsed, not panel.title.endswith("(recommended)")))


def finished_runs(records: Sequence[RunRecord], summaries: Sequence[MethodSummary]) -> list[RunRecord]:
    """The runs whose results are in the summaries."""
    seeds = {s.label: s.seeds for s in summaries}
    return [
        r for r in records if r.status == "done" and r.results and r.spec.seed in seeds.get(r.spec.method.label, ())
    ]


def _point(
    summary: MethodSummary,
    cost: tuple[float, float | None, float | None],
    recommendation: Recommendation | None,
) -> Point:
    assert summary.test_metric is not None
    score = summary.test_metric
    return Point(
        summary.label,
        *cost,
        score.mean,
        score.low,
        score.high,
        efficient=recommendation is None or summary.label in recommendation.pareto,
        chosen=recommendation is not None and summary.label == recommendation.choice,
    )


def _memory(cost: CostRecord | None, peaks: bool) -> tuple[float, None, None] | None:
    size = None if cost is None else cost.peak_bytes if peaks else cost.saved_bytes
    return None if size is None else (size / 2**20, None, None)


def _sum(matrices: Sequence[list[list[int]]]) -> list[list[int]]:
    """Elementwise; empty where the seeds have different classes."""
    if len({len(m) for m in matrices}) != 1:
        return []
    return [[sum(cells) for cells in zip(*rows)] for rows in zip(*matrices)]


def _commonest_error(matrix: list[list[int]], names: Sequence[str]) -> str:
    errors = [(matrix[i][j], -i, -j) for i in range(len(matrix)) for j in range(len(matrix)) if i != j]
    count, i, j = max(errors, default=(0, 0, 0))
    return f"; commonest error: {names[-i]} taken for {names[-j]} ({count:,} times)" if count else ""
