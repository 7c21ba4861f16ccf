"""The report section of laziness: the distance of each network from its linearisation at W0, and what it means."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tunewise.measures.base import Measure, SectionData
from tunewise.measures.laziness.compute import LazinessResult, Point, compute
from tunewise.measures.section_parts import bars_panel
from tunewise.number_format import MISSING
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

LAZY, BROKEN = 0.1, 0.5
"""Below the first the linearisation explains at least nine tenths of how far the logits moved; above the second it
misses half or more."""
Data = SectionData[LazinessResult]
Distance = Callable[[Point], float | None]

_PARTS: dict[str, tuple[str, Distance]] = {
    "backbone": ("Distance from the linearisation, backbone alone", lambda point: point.backbone.distance),
    "train": ("Distance from the linearisation, everything trained", lambda point: point.train.distance),
}
_AXIS = "‖f − f_lin‖ / ‖f − f₀‖"


def section(data: Data) -> Section:
    panels = [panel for part in _PARTS if (panel := _distances_at_end(part, data))]
    paragraphs = [
        "The theory of LoRA without spurious minima (arXiv 2402.11867) assumes that the network stays near its "
        "linearisation in the adapted weights at W0. Here is how far from it each run went, over the logits of "
        f"{data.first.train_examples} training and {data.first.test_examples} test examples: once for the backbone "
        "alone, with the task head held at its trained values, and once for everything that is trained.",
        answer(data),
    ]
    return Section("laziness", "Is training lazy here?", paragraphs, panels, [_table(data)], notes=data.missing)


def answer(data: Data) -> str:
    """Does the assumption of the NTK theory hold? By the backbone's distances at the selected epoch."""
    means = _means(data, lambda point: point.backbone.distance)
    groups: dict[str, list[str]] = {"holds": [], "holds in part": [], "does not hold": []}
    for label, value in sorted(means.items(), key=lambda item: item[1]):
        key = "holds" if value < LAZY else "holds in part" if value < BROKEN else "does not hold"
        groups[key].append(f"{label} ({value:.2g})")
    parts = [f"it {key} for {', '.join(labels)}" for key, labels in groups.items() if labels]
    unmoved = [label for label in data.labels if label not in means]
    if unmoved:
        parts.append(f"nothing can be said of {', '.join(unmoved)}: the backbone did not move")
    limits = f"below {LAZY:g} it holds, from {BROKEN:g} on the tangent misses half of the move or more"
    joined = "; ".join(parts)
    text = (
        f"Does that assumption hold here? {joined[:1].upper()}{joined[1:]} (relative distance of the backbone; "
        f"{limits})."
    )
    everything = _means(data, lambda point: point.train.distance)
    further = [label for label in means if label in everything and everything[label] > 2 * means[label]]
    if further:
        text += (
            f" With the head's own training included the distance more than doubles for {', '.join(further)}: most "
            "of it is the product of what head and backbone learnt, which no linearisation contains."
        )
    return text


def _means(data: Data, distance: Distance) -> dict[str, float]:
    values = data.by_seed(lambda result: distance(result.selected))
    return {label: statistics.fmean(by_seed.values()) for label, by_seed in values.items()}


def _distances_at_end(part: str, data: Data) -> Panel | None:
    title, distance = _PARTS[part]
    values = data.by_seed(lambda result: distance(result.selected))
    if not values:
        return None
    return bars_panel(f"laziness-{part}-figure", f"{title}, at the end", values, data.marks, axis=_AXIS, digits=".3f")


def _table(data: Data) -> Table:
    rows = []
    for label in data.labels:
        points = [result.selected for result in data.of_method(label)]
        row = [label]
        for distances in zip(*((p.backbone.distance, p.train.distance, p.test.distance) for p in points)):
            numbers = [d for d in distances if d is not None]
            row.append(f"{statistics.fmean(numbers):.3g}" if numbers else MISSING)
        row.append(f"{statistics.fmean(point.train.moved for point in points):.3g}")
        row.append(f"{100 * statistics.fmean(point.test.agreement for point in points):.0f} %")
        rows.append(row)
    caption = (
        "At the selected epoch, means over seeds: ‖f − f_lin‖ / ‖f − f₀‖ for the backbone alone and for everything "
        "trained; ‖f − f₀‖ / ‖f₀‖; and the share of test examples for which network and linearisation choose the same "
        "class"
    )
    return Table(
        ["method", "backbone", "all", "all, test examples", "logits moved by", "same class chosen"], rows, caption
    )


MEASURES.register("laziness", Measure("laziness", "laziness", compute, LazinessResult, section))
