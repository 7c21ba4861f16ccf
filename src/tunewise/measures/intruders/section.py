"""The report section of intruder dimensions: how many, at every threshold, for every method."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.measures.base import Measure, SectionData
from tunewise.measures.intruders.compute import IntruderSettings, IntrudersResult, compute
from tunewise.measures.section_parts import (
    FAMILY_COLOURS,
    common_layers,
    family_marks,
    has_family,
    plus_minus,
    short_layers,
)
from tunewise.number_format import MISSING
from tunewise.pages.figures import Curve, layer_heat_map, lines, mark_range
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

_SHOWN = (0.2, 0.4, 0.6, 0.8)
_THRESHOLDS = tuple(i / 100 for i in range(1, 101))
Data = SectionData[IntrudersResult]


def section(data: Data) -> Section:
    layers = common_layers([result.layers for _, result in data.runs])
    where = (
        f"on average over the {len(layers)} weights that all methods change."
        if layers
        else "on average over each method's own weights (no weight is changed by all of them)."
    )
    vectors = "all" if data.first.top_k == "all" else f"the {data.first.top_k} top"
    paragraphs = [
        f"A left singular vector of the fine-tuned weight, one of {vectors}, is an intruder where its largest |cos| "
        "with all left singular vectors of the pretrained weight is below a threshold: a direction that counts now and "
        f"was not there before (arXiv 2410.21228). The curves count them at every threshold, {where}"
    ]
    if has_family([record for record, _ in data.runs]):
        paragraphs.append(FAMILY_COLOURS)
    note = "In the table: intruders per weight, mean over seeds with its 95 % interval."
    return Section(
        "intruders",
        "Intruder dimensions",
        paragraphs,
        [_curves(data, layers)],
        [_table(data, layers)],
        [_by_layer(data)],
        "Layer by layer",
        [note, *data.missing],
        wide=True,
    )


def intruders_per_weight(result: IntrudersResult, layers: Sequence[str], threshold: float) -> float:
    """Over the named layers, or all of them where none are named."""
    counts = [result.layers[name].count(threshold) for name in (layers or result.layers)]
    return sum(counts) / len(counts)


def _curves(data: Data, layers: Sequence[str]) -> Panel:
    curves = {}
    for label in data.labels:
        results = data.of_method(label)
        counts = [[intruders_per_weight(result, layers, t) for result in results] for t in _THRESHOLDS]
        mean = [sum(c) / len(c) for c in counts]
        curves[label] = Curve(_THRESHOLDS, mean, list(map(min, counts)), list(map(max, counts)))
    top = data.first.top_k
    figure = lines(
        curves,
        family_marks([record for record, _ in data.runs], data.marks),
        x_title="threshold on the largest |cos|",
        y_title="intruders per weight" + ("" if top == "all" else f", of {top}"),
        span=(0, 1),
    )
    baselines = [r.layers[name].baseline for _, r in data.runs for name in (layers or r.layers)]
    mark_range(figure, min(baselines), max(baselines), "a random direction")
    counts_at = "; ".join(f"{label} {curve.mean[59]:.2f}" for label, curve in curves.items())
    caption = (
        "Mean over seeds; bands go from the lowest seed to the highest. The dotted line is the largest |cos| of a "
        "random direction, about √(2 ln n / n): a vector left of it is no more related to the pretrained weight than "
        "a random one."
    )
    alt_text = f"Intruders per weight at 0.6: {counts_at}."
    return Panel("intruders-figure", "Intruders against the threshold", caption, alt_text, figure)


def _table(data: Data, layers: Sequence[str]) -> Table:
    threshold = data.first.threshold
    thresholds = sorted({*_SHOWN, threshold})
    rows = []
    for label in data.labels:
        results = data.of_method(label)
        row = [label, *(plus_minus([intruders_per_weight(r, layers, t) for r in results], ".2f") for t in thresholds)]
        total = sum(result.count(threshold) for result in results) / len(results)
        lowest = min(min(layer.cosines) for result in results for layer in result.layers.values())
        rows.append([*row, f"{total:.1f} of {results[0].vectors:,}", f"{lowest:.3f}"])
    all_weights = f"all its weights, below {threshold:g}"
    return Table(["method", *(f"below {t:g}" for t in thresholds), all_weights, "lowest |cos|"], rows)


def _by_layer(data: Data) -> Panel:
    threshold = data.first.threshold
    names = list(dict.fromkeys(name for _, result in data.runs for name in result.layers))
    values: list[list[float | None]] = []
    for label in data.labels:
        counts = [[r.layers[n].count(threshold) for r in data.of_method(label) if n in r.layers] for n in names]
        values.append([sum(c) / len(c) if c else None for c in counts])
    cells = [(v, m, n) for m, row in zip(data.labels, values) for n, v in zip(names, row) if v is not None]
    count, method, layer = max(cells, default=(0.0, MISSING, MISSING))
    figure = layer_heat_map(data.labels, short_layers(names), values, unit="intruders")
    alt_text = f"Intruders below {threshold:g} by method and layer; most: {method} in {layer}, {count:.1f}."
    caption = "Mean over seeds. Empty: the method does not change that weight."
    return Panel("intruders-layers", f"Intruders below {threshold:g} in each weight", caption, alt_text, figure)


MEASURES.register(
    "intruders",
    Measure("intruders", "intruder dimensions", compute, IntrudersResult, section, settings=IntruderSettings),
)
