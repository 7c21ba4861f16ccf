"""Is training lazy here? The distance of each network from its linearisation at W0, and the answer in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tunewise.measures.along_runs import Found, by_method, curves_of
from tunewise.pages import figures
from tunewise.pages.figures import GapBar
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

LAZY, BROKEN = 0.1, 0.5
"""Below the first the linearisation explains at least nine tenths of how far the logits moved; above the second it
misses half or more."""


_PARTS = {"backbone": "Distance from the linearisation, backbone alone", "train": "The same, all that is trained"}
_AXIS = "‖f − f_lin‖ / ‖f − f₀‖"


def section(data: ReportData) -> Section | None:
    """Distances of every method; None where nothing was measured."""
    found = data.values("laziness")
    if not found:
        return None
    panels = [panel for part in _PARTS if (panel := _curve(part, found, data))]
    drawn = bool(panels)
    folded = [panel for panel in [_moved(found, data)] if panel]
    if not panels:
        panels = [panel for part in _PARTS if (panel := _ends(part, found, data))]
    notes = data.missing("laziness")
    if not drawn:
        notes = [*notes, "The runs kept no trajectory, so only their ends are shown; --trajectory 20 keeps one."]
    examples = found[0][1]["examples"]
    words = [
        "The theory of LoRA without spurious minima (arXiv 2402.11867) supposes that the network stays near its "
        "linearisation in the adapted weights at W0. Here is how far from it each run went, over the logits of "
        f"{examples['train']} training and {examples['test']} test examples: once for the backbone alone, with the "
        "task head held at what training made of it, and once for all that is trained.",
        answer(found),
    ]
    return Section(
        "laziness",
        "Is training lazy here?",
        words,
        panels,
        [_table(found)],
        folded=folded,
        folded_title="How far the logits moved",
        notes=notes,
    )


def answer(found: Found) -> str:
    """Is the NTK theory's premise true here? From the backbone's distances at the selected epoch; and whether head and
    backbone together are further from lazy."""
    means = _means(found, "backbone")
    unmoved = [m for m in dict.fromkeys(r.spec.method.label for r, _ in found) if m not in means]
    groups: dict[str, list[str]] = {"holds": [], "holds in part": [], "does not hold": []}
    for method, value in sorted(means.items(), key=lambda item: item[1]):
        key = "holds" if value < LAZY else "holds in part" if value < BROKEN else "does not hold"
        groups[key].append(f"{method} ({value:.2g})")
    said = [f"it {key} for {', '.join(methods)}" for key, methods in groups.items() if methods]
    if unmoved:
        said.append(f"there is nothing to say of {', '.join(unmoved)}, whose backbone did not move")
    limits = f"below {LAZY:g} it holds, from {BROKEN:g} on the tangent misses half of the move or more"
    text = f"Is that premise true here? {_sentence(said)} (relative distance of the backbone's part; {limits})."
    whole = _means(found, "train")
    further = [m for m in means if m in whole and whole[m] > 2 * means[m]]
    if further:
        text += (
            f" With the head's own training counted the distance more than doubles for {', '.join(further)}: most "
            "of it is the product of what head and backbone learnt, which is in no linearisation."
        )
    return text


def _means(found: Found, part: str) -> dict[str, float]:
    return {
        method: statistics.fmean(by_seed.values())
        for method, by_seed in by_method(found, lambda v: _distance(v["selected"], part)).items()
    }


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _distance(point: Mapping[str, Any], part: str) -> float | None:
    value: float | None = point[part]["distance"]
    return value


def _curve(part: str, found: Found, data: ReportData) -> Panel | None:
    drawn = curves_of(found, lambda point: _distance(point, part))
    if not drawn:
        return None
    figure = figures.learning_curves(drawn, data.marks, what=_AXIS)
    figure.update_yaxes(tickformat="~g", rangemode="tozero")
    ends = "; ".join(f"{method} {curve.mean[-1]:.3f}" for method, curve in drawn.items())
    return Panel(
        f"laziness-{part}-figure",
        _PARTS[part],
        "0: it moves as its tangent at the pretrained weights does." if part == "backbone" else "",
        f"{_PARTS[part]}: relative distance of the logits from the linearised network's; at the end: {ends}.",
        figure,
        filtered=True,
    )


def _moved(found: Found, data: ReportData) -> Panel | None:
    drawn = curves_of(found, lambda point: point["train"]["moved"])
    if not drawn:
        return None
    figure = figures.learning_curves(drawn, data.marks, what="‖f − f₀‖ / ‖f₀‖")
    figure.update_yaxes(tickformat="~g", rangemode="tozero")
    ends = "; ".join(f"{method} {curve.mean[-1]:.2f}" for method, curve in drawn.items())
    return Panel(
        "moved-figure",
        "How far the logits moved",
        "Relative to their size before training.",
        f"Relative move of the logits from their start, over epochs; at the end: {ends}.",
        figure,
        filtered=True,
    )


def _ends(part: str, found: Found, data: ReportData) -> Panel | None:
    bars = []
    for method, by_seed in by_method(found, lambda v: _distance(v["selected"], part)).items():
        bars.append(GapBar(method, statistics.fmean(by_seed.values()), None, None, sorted(by_seed.items())))
    if not bars:
        return None
    words = "; ".join(f"{bar.method} {bar.mean:.3f}" for bar in bars)
    figure = figures.gap_per_method(bars, data.marks, axis=_AXIS, unit="")
    return Panel(
        f"laziness-{part}-figure",
        f"{_PARTS[part]}, at the end",
        "Large mark: mean over seeds. Small rings: the seeds.",
        f"{_PARTS[part]}: relative distance of the logits from the linearised network's: {words}.",
        figure,
    )


def _table(found: Found) -> Grid:
    rows = []
    for method in dict.fromkeys(r.spec.method.label for r, _ in found):
        own = [v["selected"] for r, v in found if r.spec.method.label == method]
        cells = [method]
        for part in ("backbone", "train", "test"):
            known = [d for v in own if (d := _distance(v, part)) is not None]
            cells.append(f"{statistics.fmean(known):.3g}" if known else "–")
        cells.append(f"{statistics.fmean(v['train']['moved'] for v in own):.3g}")
        cells.append(f"{100 * statistics.fmean(v['test']['agreement'] for v in own):.0f} %")
        rows.append(cells)
    return Grid(
        ["method", "backbone", "all", "all, test examples", "logits moved by", "same class chosen"],
        rows,
        "At the selected epoch, means over seeds: ‖f − f_lin‖ / ‖f − f₀‖ for the backbone alone and for all that is "
        "trained; ‖f − f₀‖ / ‖f₀‖; and the share of test examples on which network and linearisation choose the "
        "same class",
    )
