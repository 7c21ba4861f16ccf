"""Is training lazy here? The distance of each network from its linearisation at W0, and the answer in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tunewise.report import figures
from tunewise.report.along_runs import Found, by_method, curves_of
from tunewise.report.figures import GapBar
from tunewise.report.panels import Panel
from tunewise.report.section import Grid, ReportData, Section

LAZY, BROKEN = 0.1, 0.5
"""Below the first the linearisation explains at least nine tenths of how far the logits moved; above the second it
misses half or more."""


def section(data: ReportData) -> Section | None:
    """Distances of every method; None where nothing was measured."""
    found = data.values("laziness")
    if not found:
        return None
    drawn = curves_of(found, lambda point: _distance(point, "train"))
    panels = []
    if drawn:
        figure = figures.learning_curves(drawn, data.marks, what="‖f − f_lin‖ / ‖f − f₀‖")
        figure.update_yaxes(tickformat="~g", rangemode="tozero")
        ends = "; ".join(f"{method} {curve.mean[-1]:.3f}" for method, curve in drawn.items())
        panels.append(
            Panel(
                "laziness-figure",
                "Distance from the linearisation",
                "On training examples. 0: the network moves as its tangent at the pretrained weights does.",
                f"Relative distance of the logits from the linearised network's, over epochs; at the end: {ends}.",
                figure,
                filtered=True,
            )
        )
        moved = curves_of(found, lambda point: point["train"]["moved"])
        figure = figures.learning_curves(moved, data.marks, what="‖f − f₀‖ / ‖f₀‖")
        figure.update_yaxes(tickformat="~g", rangemode="tozero")
        ends = "; ".join(f"{method} {curve.mean[-1]:.2f}" for method, curve in moved.items())
        panels.append(
            Panel(
                "moved-figure",
                "How far the logits moved",
                "Relative to their size before training.",
                f"Relative move of the logits from their start, over epochs; at the end: {ends}.",
                figure,
                filtered=True,
            )
        )
    else:
        panels.append(_ends(found, data))
    notes = data.missing("laziness")
    if not drawn:
        notes = [*notes, "The runs kept no trajectory, so only their ends are shown; --trajectory 20 keeps one."]
    examples = found[0][1]["examples"]
    words = [
        "The theory of LoRA without spurious minima (arXiv 2402.11867) supposes that the network stays near its "
        "linearisation at the pretrained weights. Here is how far from it each run went, over the logits of "
        f"{examples['train']} training and {examples['test']} test examples.",
        answer(found),
    ]
    return Section("laziness", "Is training lazy here?", words, panels, [_table(found)], notes=notes)


def answer(found: Found) -> str:
    """Is the NTK theory's premise true here? From the distances at the selected epoch, on training examples."""
    means = {
        m: statistics.fmean(v.values())
        for m, v in by_method(found, lambda v: _distance(v["selected"], "train")).items()
    }
    unmoved = [m for m in dict.fromkeys(r.spec.method.label for r, _ in found) if m not in means]
    groups: dict[str, list[str]] = {"holds": [], "holds in part": [], "does not hold": []}
    for method, value in sorted(means.items(), key=lambda item: item[1]):
        key = "holds" if value < LAZY else "holds in part" if value < BROKEN else "does not hold"
        groups[key].append(f"{method} ({value:.2g})")
    said = [f"it {key} for {', '.join(methods)}" for key, methods in groups.items() if methods]
    if unmoved:
        said.append(f"nothing can be said of {', '.join(unmoved)}, whose logits hardly moved")
    limits = f"below {LAZY:g} it holds, from {BROKEN:g} on the tangent misses half of the move or more"
    return f"Is that premise true here? {_sentence(said)} (relative distance at the selected epoch; {limits})."


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _distance(point: Mapping[str, Any], part: str) -> float | None:
    value: float | None = point[part]["distance"]
    return value


def _ends(found: Found, data: ReportData) -> Panel:
    bars = []
    for method, by_seed in by_method(found, lambda v: _distance(v["selected"], "train")).items():
        bars.append(GapBar(method, statistics.fmean(by_seed.values()), None, None, sorted(by_seed.items())))
    words = "; ".join(f"{bar.method} {bar.mean:.3f}" for bar in bars)
    figure = figures.gap_per_method(bars, data.marks, axis="‖f − f_lin‖ / ‖f − f₀‖", unit="")
    return Panel(
        "laziness-figure",
        "Distance from the linearisation at the end",
        "Large mark: mean over seeds. Small rings: the seeds.",
        f"Relative distance of the logits from those of the linearised network: {words}.",
        figure,
    )


def _table(found: Found) -> Grid:
    rows = []
    for method in dict.fromkeys(r.spec.method.label for r, _ in found):
        own = [v["selected"] for r, v in found if r.spec.method.label == method]
        cells = [method]
        for part in ("train", "test"):
            known = [d for v in own if (d := _distance(v, part)) is not None]
            cells.append(f"{statistics.fmean(known):.3g}" if known else "–")
        cells.append(f"{statistics.fmean(v['train']['moved'] for v in own):.3g}")
        cells.append(f"{100 * statistics.fmean(v['test']['agreement'] for v in own):.0f} %")
        rows.append(cells)
    return Grid(
        ["method", "distance, training", "distance, test", "logits moved by", "same class chosen"],
        rows,
        "At the selected epoch, means over seeds: ‖f − f_lin‖ / ‖f − f₀‖, ‖f − f₀‖ / ‖f₀‖, and the share of test "
        "examples on which the network and its linearisation choose the same class",
    )
