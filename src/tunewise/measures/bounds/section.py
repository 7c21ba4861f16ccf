"""The report section of bounds: the measured gap of each method beside the theory's bounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from tunewise.measures.base import Measure, SectionData
from tunewise.measures.bounds.compute import BoundsResult, compute
from tunewise.measures.section_parts import plus_minus
from tunewise.number_format import MISSING, count
from tunewise.pages import palette
from tunewise.pages.drawing import add_vertical_line, blank_figure, plain
from tunewise.pages.figures import name_rows
from tunewise.pages.palette import Mark
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

_OTHERS = {
    "phi-dw": "Φ_dW",
    "phi-w0": "Φ_W0",
    "phi-w0+information": "(B) Φ_W0 + (A)",
    "theorem-6": "(C) Theorem 6",
    "pac-bayes": "PAC-Bayes",
}
Data = SectionData[BoundsResult]
BySeed = Mapping[str, Mapping[int, float]]


def section(data: Data) -> Section:
    gaps = data.by_seed(lambda result: result.gap.gap if result.gap else None)
    bounds = data.by_seed(_headline)
    loss_range = data.first.facts.loss_range or 0.0
    paragraphs = [
        "How much worse can a model be on new data, according to theory? The information-theoretic bound (arXiv "
        "2606.13767, Theorem 7) is on the expected gap and needs a bounded loss, so here every loss is clipped to "
        f"[0, {loss_range:.3g}] (chance, in nats): a gap is then at most {loss_range:.3g} in any case. The task head "
        "is counted with the adapter, since it is trained on the same examples. The measured train loss is that of "
        f"{data.runs[0][0].gap_source}.",
        _how_vacuous(gaps, bounds, loss_range, data.first.facts.samples or 0),
        *_ranks(data),
    ]
    return Section(
        "bounds",
        "Gap against bound",
        paragraphs,
        [_panel(gaps, bounds, loss_range, data.marks)],
        [_table(data, gaps, bounds), _other_bounds(data)],
        notes=[*_unmet(data), *data.missing],
    )


def _headline(result: BoundsResult) -> float | None:
    with_head = result.line("information-head")
    return with_head.value if with_head is not None else result.value("information")


def _how_vacuous(gaps: BySeed, bounds: BySeed, loss_range: float, samples: int) -> str:
    means = {label: statistics.fmean(by_seed.values()) for label, by_seed in bounds.items()}
    informative = [label for label, bound in means.items() if bound < loss_range]
    lowest = min(means, key=means.__getitem__)
    measured = statistics.fmean(gaps[lowest].values())
    ratio = f", {means[lowest] / measured:,.0f} times its measured gap of {measured:.3g}" if measured > 0 else ""
    if informative:
        return (
            f"It is informative for {', '.join(informative)}, being below {loss_range:.3g}. The lowest is that of "
            f"{lowest}, {means[lowest]:.3g}{ratio}."
        )
    needed = round(samples * (means[lowest] / loss_range) ** 2)
    return (
        f"It is vacuous for every method here: each bound is above {loss_range:.3g}, which no gap can exceed. The "
        f"lowest is that of {lowest}, {means[lowest]:.3g}{ratio}; with {samples:,} examples it says nothing, and would "
        f"from about {needed:,} on. It still orders the methods, by the number of their trained parameters."
    )


def _ranks(data: Data) -> list[str]:
    known = {line.key: line.value for _, result in data.runs for line in result.lines if line.kind == "rank"}
    if "rank-no-spurious" not in known:
        return []
    return [
        f"Ranks, if training were lazy (arXiv 2402.11867; 2605.03724): a minimiser of rank {known['rank-exists']} or "
        f"less exists, and from rank {known['rank-no-spurious']} on (by a later and weaker condition "
        f"{known['rank-generic']}) LoRA has no spurious local minimum. These are sufficient, not necessary."
    ]


def _panel(gaps: BySeed, bounds: BySeed, loss_range: float, marks: Mapping[str, Mark]) -> Panel:
    rows = [(m, list(gaps[m].values()), statistics.fmean(bounds[m].values())) for m in gaps if m in bounds]
    each = "; ".join(f"{m}: gap {statistics.fmean(seeds):.4f}, bound {bound:.3g}" for m, seeds, bound in rows)
    caption = (
        "Filled mark: measured gap of the clipped loss, mean over seeds; small rings: the seeds. Hollow mark: the "
        "bound. A gap below zero is drawn at its size, with a minus sign."
    )
    alt_text = f"Measured gap and bound in nats, where no gap can be above {loss_range:.3g}. {each}."
    figure = gap_against_bound(rows, loss_range, marks)
    return Panel("bounds-figure", "Measured gap and information bound", caption, alt_text, figure)


def gap_against_bound(
    rows: Sequence[tuple[str, Sequence[float], float]], loss_range: float, marks: Mapping[str, Mark]
) -> go.Figure:
    """A row for each (method, gap of each seed, bound), on a logarithmic axis that is marked at the largest gap."""
    figure = blank_figure(height=130 + 40 * len(rows))
    for place, (method, seeds, bound) in enumerate(rows):
        mark, mean, name = marks[method], statistics.fmean(seeds), plain(method)
        if mean and bound:
            ends, line = [abs(mean), bound], {"color": palette.GRID, "width": 2}
            figure.add_scatter(x=ends, y=[place, place], mode="lines", line=line, hoverinfo="skip")
        drawn = [abs(gap) for gap in seeds if gap]
        if len(seeds) > 1:
            figure.add_scatter(
                x=drawn,
                y=[place + 0.26] * len(drawn),
                mode="markers",
                marker={"symbol": "circle-open", "size": 6, "color": mark.light, "line": {"width": 1.2}},
                hovertemplate=f"{name}, a seed: %{{x:.3g}} nats<extra></extra>",
            )
        if mean:
            figure.add_scatter(
                x=[abs(mean)],
                y=[place],
                mode="markers+text",
                text=["−" if mean < 0 else ""],
                textposition="top center",
                marker={"symbol": mark.symbol, "size": 12, "color": mark.light},
                hovertemplate=f"{name}: gap {mean:.4f} nats<extra></extra>",
            )
        if bound:
            figure.add_scatter(
                x=[bound],
                y=[place],
                mode="markers",
                marker={"symbol": f"{mark.symbol}-open", "size": 12, "color": mark.light, "line": {"width": 2}},
                hovertemplate=f"{name}: bound %{{x:.3g}} nats<extra></extra>",
            )
    add_vertical_line(figure, loss_range, "no gap can be above", side="right")
    figure.update_xaxes(title_text="nats (log scale)", type="log", dtick=1, exponentformat="power", minor={"ticks": ""})
    name_rows(figure, [method for method, _, _ in rows], top=-0.9)
    return figure


def _table(data: Data, gaps: BySeed, bounds: BySeed) -> Table:
    rows = []
    for label, by_seed in gaps.items():
        result = data.of_method(label)[0]
        gap = statistics.fmean(by_seed.values())
        headline = statistics.fmean(bounds[label].values())
        alone, head = result.value("information"), result.facts.head
        rows.append(
            [
                label,
                count(int(result.value("parameters") or 0)),
                count(head),
                plus_minus(list(by_seed.values()), ".4f").replace("-", "−"),
                f"{alone:.3g}" if alone is not None and head else MISSING,
                f"{headline:.3g}",
                f"{headline / gap:,.0f} ×" if gap > 0 else MISSING,
            ]
        )
    columns = ["trained, adapter", "head", "measured gap", "(A) adapter alone", "(A) with head", "bound / gap"]
    caption = "Gap of the clipped loss, nats, and the information bound (A): 32 bits a parameter, sigma half the range"
    return Table(["method", *columns], rows, caption)


def _other_bounds(data: Data) -> Table:
    rows = [[label, *(_largest(data.of_method(label), key) for key in _OTHERS)] for label in data.labels]
    caption = (
        "Other theorems of arXiv 2606.13767, nats, the largest over seeds. Assumptions not met: they are for plain "
        "feed-forward networks, and here the changed layers are taken as if each were the input of the next"
    )
    return Table(["method", *_OTHERS.values()], rows, caption)


def _largest(results: Sequence[BoundsResult], key: str) -> str:
    lines = [line for result in results if (line := result.line(key)) is not None]
    logs = [line.log_value for line in lines if line.log_value is not None]
    if not logs:
        return MISSING
    exponent = max(logs) / math.log(10)
    return f"{10**exponent:.3g}" if -3 < exponent < 4 else f"10^{exponent:.1f}"


def _unmet(data: Data) -> list[str]:
    """Assumptions of the shown bounds that are known not to hold, each once."""
    lines = [line for _, result in data.runs for line in result.lines if line.key in (*_OTHERS, "information")]
    reasons = dict.fromkeys(r for line in lines for r in line.unmet if "parameters carry" not in r)
    return [f"Not met by these networks: {'; '.join(reasons)}."] if reasons else []


MEASURES.register("bounds", Measure("bounds", "bounds of the gap", compute, BoundsResult, section))
