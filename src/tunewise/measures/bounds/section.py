"""The measured gap beside the theory's bounds: what each method was promised, what it got, and how much that says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tunewise import number_format as numbers
from tunewise.advise.statistics import mean_interval
from tunewise.measures.along_runs import Found, by_method
from tunewise.pages import drawing, palette
from tunewise.pages.palette import Mark
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

_OTHERS = {
    "phi-dw": "Φ_dW",
    "phi-w0": "Φ_W0",
    "phi-w0+information": "(B) Φ_W0 + (A)",
    "theorem-6": "(C) Theorem 6",
    "pac-bayes": "PAC-Bayes",
}


def section(data: ReportData) -> Section | None:
    """Gap and information bound of every method on one logarithmic axis; None where nothing was measured."""
    found = data.values("bounds")
    if not found:
        return None
    gaps = by_method(found, lambda v: v["gap"]["gap"])
    bounds = by_method(found, lambda v: _value(v, _headline(v)))
    first = found[0][1]
    whole = first["gap"]["range"]
    words = [
        "How much worse may a model be on new data, says theory? The information-theoretic bound (arXiv 2606.13767, "
        "Theorem 7) is on the expected gap and needs a bounded loss, so here every loss is clipped to "
        f"[0, {whole:.3g}] (chance, in nats): a gap can then be at most {whole:.3g}, whatever theory says. The task "
        "head is counted with the adapter, since it is trained on the same examples.",
        _how_vacuous(gaps, bounds, whole, first["facts"]["samples"]),
    ]
    ranks = _ranks(data)
    return Section(
        "bounds",
        "Gap against bound",
        [*words, *ranks],
        [_panel(gaps, bounds, whole, data.marks)],
        [_table(found, gaps), _other_bounds(found)],
        notes=[*_unmet(found), *data.missing("bounds")],
    )


def _headline(values: Mapping[str, Any]) -> str:
    return "information-head" if any(line["key"] == "information-head" for line in values["lines"]) else "information"


def _line(values: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    return next((line for line in values["lines"] if line["key"] == key), None)


def _value(values: Mapping[str, Any], key: str) -> float | None:
    line = _line(values, key)
    return None if line is None else line["value"]


def _how_vacuous(gaps: Mapping[str, Any], bounds: Mapping[str, Any], whole: float, samples: int) -> str:
    means = {method: statistics.fmean(by_seed.values()) for method, by_seed in bounds.items()}
    telling = [method for method, bound in means.items() if bound < whole]
    lowest = min(means, key=means.__getitem__)
    measured = statistics.fmean(gaps[lowest].values())
    needed = round(samples * (means[lowest] / whole) ** 2)
    ratio = f", {means[lowest] / measured:,.0f} times its measured gap of {measured:.3g}" if measured > 0 else ""
    if telling:
        return (
            f"It says something for {', '.join(telling)}, being below {whole:.3g}. The lowest is that of {lowest}, "
            f"{means[lowest]:.3g}{ratio}."
        )
    return (
        f"It is vacuous for every method here: each bound is above {whole:.3g}, which no gap can exceed. The lowest "
        f"is that of {lowest}, {means[lowest]:.3g}{ratio}; with {samples:,} examples it says nothing, and would from "
        f"about {needed:,} on. What it can be read for is an order of methods, and that is the order of their trained "
        "parameters."
    )


def _ranks(data: ReportData) -> list[str]:
    lines = [
        _line(v, key) for key in ("rank-exists", "rank-no-spurious", "rank-generic") for _, v in data.values("bounds")
    ]
    known = {line["key"]: line["value"] for line in lines if line is not None}
    if "rank-no-spurious" not in known:
        return []
    return [
        f"Ranks, if training were lazy (arXiv 2402.11867; 2605.03724): a minimiser of rank {known['rank-exists']} or "
        f"less exists, and from rank {known['rank-no-spurious']} on (by a later and weaker demand "
        f"{known['rank-generic']}) LoRA has no spurious local minimum. These are sufficient, not necessary."
    ]


def _panel(
    gaps: Mapping[str, Mapping[int, float]],
    bounds: Mapping[str, Mapping[int, float]],
    whole: float,
    marks: Mapping[str, Mark],
) -> Panel:
    methods = [method for method in gaps if method in bounds]
    figure = gap_against_bound(
        [(m, list(gaps[m].values()), statistics.fmean(bounds[m].values())) for m in methods], whole, marks
    )
    words = "; ".join(
        f"{m}: gap {statistics.fmean(gaps[m].values()):.4f}, bound {statistics.fmean(bounds[m].values()):.3g}"
        for m in methods
    )
    caption = (
        "Filled mark: measured gap of the clipped loss, mean over seeds; small rings: the seeds. Hollow mark: the "
        "bound. A gap below zero is drawn at its size, with a minus sign."
    )
    return Panel(
        "bounds-figure",
        "Measured gap and information bound",
        caption,
        f"Measured gap and bound in nats, where no gap can be above {whole:.3g}. {words}.",
        figure,
    )


def gap_against_bound(
    rows: Sequence[tuple[str, Sequence[float], float]], whole: float, marks: Mapping[str, Mark]
) -> go.Figure:
    """One row a method, (name, gap of each seed, bound), on a logarithmic axis; an upright where gaps must end."""
    figure = drawing.blank_figure(height=130 + 40 * len(rows))
    for place, (method, seeds, bound) in enumerate(rows):
        mark, mean = marks[method], statistics.fmean(seeds)
        name = drawing.plain(method)
        if mean and bound:
            figure.add_scatter(
                x=[abs(mean), bound],
                y=[place, place],
                mode="lines",
                line={"color": palette.GRID, "width": 2},
                hoverinfo="skip",
            )
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
    drawing.upright(figure, whole, "no gap can be above", side="right")
    figure.update_xaxes(title_text="nats (log scale)", type="log", dtick=1, exponentformat="power", minor={"ticks": ""})
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[drawing.plain(method) for method, _, _ in rows],
        range=[len(rows) - 0.4, -0.9],
        showgrid=False,
        zeroline=False,
        tickfont={"size": 13, "color": palette.INK},
    )
    return figure


def _table(found: Found, gaps: Mapping[str, Mapping[int, float]]) -> Grid:
    rows = []
    for method, by_seed in gaps.items():
        own = [v for r, v in found if r.spec.method.label == method]
        gap = mean_interval(list(by_seed.values()))
        spread = "" if gap.low is None else f" ± {gap.mean - gap.low:.4f}"
        headline = statistics.fmean(_value(v, _headline(v)) or 0.0 for v in own)
        alone = _value(own[0], "information")
        rows.append(
            [
                method,
                numbers.count(int(_value(own[0], "parameters") or 0)),
                numbers.count(own[0]["facts"]["head"]),
                f"{numbers.nats(gap.mean)}{spread}",
                f"{alone:.3g}" if alone is not None and own[0]["facts"]["head"] else "–",
                f"{headline:.3g}",
                f"{headline / gap.mean:,.0f} ×" if gap.mean > 0 else "–",
            ]
        )
    return Grid(
        ["method", "trained, adapter", "head", "measured gap", "(A) adapter alone", "(A) with head", "bound / gap"],
        rows,
        "Gap of the clipped loss, nats, and the information bound (A): 32 bits a parameter, sigma half the range",
    )


def _other_bounds(found: Found) -> Grid:
    rows = []
    for method in dict.fromkeys(r.spec.method.label for r, _ in found):
        own = [v for r, v in found if r.spec.method.label == method]
        rows.append([method, *(_power([_line(v, key) for v in own]) for key in _OTHERS)])
    return Grid(
        ["method", *_OTHERS.values()],
        rows,
        "Other theorems of arXiv 2606.13767, nats, the largest over seeds. Assumptions not met: they are for plain "
        "feed-forward networks, and here the changed layers are taken as if one fed the next",
    )


def _power(lines: Sequence[Mapping[str, Any] | None]) -> str:
    logs = [line["log_value"] for line in lines if line is not None and line["log_value"] is not None]
    if not logs:
        return "–"
    ten = max(logs) / math.log(10)
    return f"{10**ten:.3g}" if -3 < ten < 4 else f"10^{ten:.1f}"


def _unmet(found: Found) -> list[str]:
    """What is known not to hold of the information bound and the others, each once."""
    reasons: dict[str, None] = {}
    for _, values in found:
        for line in values["lines"]:
            if line["key"] in (*_OTHERS, "information"):
                reasons.update(dict.fromkeys(line["unmet"]))
    counted = [r for r in reasons if "parameters hold" not in r]
    return [f"Not met by these networks: {'; '.join(counted)}."] if counted else []
