"""The report section of alignment: angles of dW to the singular spaces of the first full gradient."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunewise.measures.alignment.compute import AlignmentResult, Angles, ChanceAngles, SliceFacts, compute
from tunewise.measures.base import Measure, SectionData
from tunewise.measures.section_parts import median
from tunewise.number_format import MISSING
from tunewise.pages.section import Section, Table
from tunewise.registry import MEASURES

Data = SectionData[AlignmentResult]


@dataclass(frozen=True)
class _Angle:
    """One of the four angles that are shown."""

    side: str
    statistic: str
    name: str
    of: Callable[[Angles], list[float | None]]
    chance: Callable[[SliceFacts], float]


_LEFT, _RIGHT = "left (output) space", "right (input) space"
_ANGLES = (
    _Angle("left", "mean", _LEFT, lambda a: a.left_mean, lambda s: s.chance_left.mean),
    _Angle("left", "largest", _LEFT, lambda a: a.left_largest, lambda s: s.chance_left.largest),
    _Angle("right", "mean", _RIGHT, lambda a: a.right_mean, lambda s: s.chance_right.mean),
    _Angle("right", "largest", _RIGHT, lambda a: a.right_largest, lambda s: s.chance_right.largest),
)


def section(data: Data) -> Section:
    paragraphs = [
        f"A full gradient was taken once, at the pretrained weights, over {data.first.samples} training examples: how "
        "near does each method's dW come to its top singular spaces? 0° is the same space, 90° nothing in common. By "
        "chance: random directions in so many dimensions.",
        *_nearer_than_chance(data),
    ]
    title = "Alignment with the first gradient"
    return Section("alignment", title, paragraphs, tables=[_table(data)], notes=data.missing)


def _nearer_than_chance(data: Data) -> list[str]:
    """Per method, in how many layers dW is nearer to the gradient's spaces than 95 % of random ones would be."""
    methods = []
    for label in data.labels:
        results = data.of_method(label)
        left = [(a, s.chance_left) for r in results for a, s in zip(r.selected.left_mean, r.layers)]
        right = [(a, s.chance_right) for r in results for a, s in zip(r.selected.right_mean, r.layers)]
        counts = [_count_nearer(left, "outputs"), _count_nearer(right, "inputs")]
        if any(counts):
            methods.append(f"{label}: {', '.join(count for count in counts if count)}")
    if not methods:
        return []
    return [f"Layers (over seeds) that end nearer to the gradient than random directions: {'; '.join(methods)}."]


def _count_nearer(angles: list[tuple[float | None, ChanceAngles]], side: str) -> str:
    nearer = [angle < chance.low for angle, chance in angles if angle is not None]
    return f"{sum(nearer)} of {len(nearer)} on the side of the {side}" if nearer else ""


def _chance(data: Data, angle: _Angle) -> float:
    """The median over layers of the angle of random spaces."""
    return statistics.median(angle.chance(layer) for _, result in data.runs for layer in result.layers)


def _table(data: Data) -> Table:
    medians = [data.by_seed(lambda result, of=angle.of: median(of(result.selected))) for angle in _ANGLES]  # type: ignore[misc]
    rows = [[label, *(_degrees(values.get(label, {})) for values in medians)] for label in data.labels]
    rows.append(["by chance", *(f"{_chance(data, angle):.1f}" for angle in _ANGLES)])
    caption = (
        "Angles of the selected epoch's dW to the first gradient's top spaces, degrees: median over layers, mean over "
        "seeds (lowest to highest seed)"
    )
    return Table(["method", *(f"{angle.side}, {angle.statistic}" for angle in _ANGLES)], rows, caption)


def _degrees(by_seed: Mapping[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return MISSING
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


MEASURES.register(
    "alignment", Measure("alignment", "alignment with the first gradient", compute, AlignmentResult, section)
)
