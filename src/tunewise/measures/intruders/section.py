"""What the report says of intruder dimensions: how many, at every threshold, in every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewise.advise.statistics import mean_interval
from tunewise.measures.families import family_marks, has_family
from tunewise.number_format import MISSING
from tunewise.pages.figures import Line, heat, lines, short_layers
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

_GRID = tuple(i / 100 for i in range(1, 101))
_SHOWN = (0.2, 0.4, 0.6, 0.8)


def section(data: ReportData) -> Section | None:
    """Curves of the count against the threshold, a table, and layer by layer; None where nothing was measured."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record, values in data.values("intruders"):
        found.setdefault(record.spec.method.label, {})[record.spec.seed] = values
    if not found:
        return None
    first = next(iter(next(iter(found.values())).values()))
    layers = common_layers([v for seeds in found.values() for v in seeds.values()])
    top, threshold = first["top_k"], float(first["threshold"])
    vectors = "all" if top == "all" else f"the {top} top"
    words = [
        f"A left singular vector of the fine-tuned weight, one of {vectors}, is an intruder where its largest |cos| "
        "with all left singular vectors of the pretrained weight is below a threshold: a direction that counts now and "
        "was not there before (arXiv 2410.21228). The curves count them at every threshold, "
        + (
            f"on average over the {len(layers)} weights that all methods change."
            if layers
            else "on average over each method's own weights (no weight is changed by all of them)."
        ),
    ]
    if has_family(data.records):
        words.append("A chain has its parent's colour: the chain solid, the parent dashed.")
    return Section(
        "intruders",
        "Intruder dimensions",
        words,
        [_curves(data, found, layers, top)],
        [_grid(found, layers, threshold)],
        [_by_layer(found, threshold)],
        "Layer by layer",
        ["In the table: intruders per weight, mean over seeds with its 95 % interval.", *data.missing("intruders")],
        wide=True,
    )


def common_layers(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Layers that every run measured, in the model's order; empty where there is none."""
    shared = set.intersection(*(set(v["layers"]) for v in values))
    return [name for name in values[0]["layers"] if name in shared]


def counts(values: Mapping[str, Any], layers: Sequence[str], threshold: float) -> float:
    """Intruders per weight at a threshold; over `layers`, or all where none are given."""
    cosines = [values["layers"][name]["cosines"] for name in (layers or values["layers"])]
    return sum(sum(c < threshold for c in layer) for layer in cosines) / len(cosines)


def _curves(
    data: ReportData, found: Mapping[str, Mapping[int, Mapping[str, Any]]], layers: Sequence[str], top: int | str
) -> Panel:
    drawn = []
    for label, seeds in found.items():
        curves = [[counts(v, layers, t) for t in _GRID] for v in seeds.values()]
        at = list(zip(*curves))
        drawn.append(Line(label, _GRID, [sum(c) / len(c) for c in at], [min(c) for c in at], [max(c) for c in at]))
    baselines = [
        v["layers"][name]["baseline"]
        for seeds in found.values()
        for v in seeds.values()
        for name in (layers or v["layers"])
    ]
    figure = lines(
        drawn,
        family_marks(data.records, data.marks),
        across="threshold on the largest |cos|",
        up="intruders per weight" + ("" if top == "all" else f", of {top}"),
        span=(0, 1),
        upright=(min(baselines), max(baselines)),
        upright_name="a random direction",
    )
    said = "; ".join(f"{line.method} {line.mean[59]:.2f}" for line in drawn)
    caption = (
        "Mean over seeds; bands go from the lowest seed to the highest. The dotted line is where a random direction's "
        "largest |cos| lies, about √(2 ln n / n): a vector left of it has no more to do with the pretrained weight "
        "than chance."
    )
    return Panel(
        "intruders-figure",
        "Intruders against the threshold",
        caption,
        f"Intruders per weight at 0.6: {said}.",
        figure,
    )


def _grid(found: Mapping[str, Mapping[int, Mapping[str, Any]]], layers: Sequence[str], threshold: float) -> Grid:
    rows = []
    for label, seeds in found.items():
        cells = [label]
        for t in sorted({*_SHOWN, threshold}):
            mean = mean_interval([counts(v, layers, t) for v in seeds.values()])
            spread = "" if mean.half_width is None else f" ± {mean.half_width:.2f}"
            cells.append(f"{mean.mean:.2f}{spread}")
        totals = [sum(sum(c < threshold for c in x["cosines"]) for x in v["layers"].values()) for v in seeds.values()]
        examined = [sum(len(x["cosines"]) for x in v["layers"].values()) for v in seeds.values()]
        lowest = min(c for v in seeds.values() for x in v["layers"].values() for c in x["cosines"])
        cells += [f"{sum(totals) / len(totals):.1f} of {examined[0]:,}", f"{lowest:.3f}"]
        rows.append(cells)
    columns = [
        "method",
        *(f"below {t:g}" for t in sorted({*_SHOWN, threshold})),
        f"all its weights, below {threshold:g}",
        "lowest |cos|",
    ]
    return Grid(columns, rows)


def _by_layer(found: Mapping[str, Mapping[int, Mapping[str, Any]]], threshold: float) -> Panel:
    names = list(dict.fromkeys(name for seeds in found.values() for v in seeds.values() for name in v["layers"]))
    values: list[list[float | None]] = []
    for seeds in found.values():
        row: list[float | None] = []
        for name in names:
            known = [v["layers"][name]["cosines"] for v in seeds.values() if name in v["layers"]]
            row.append(sum(sum(c < threshold for c in k) for k in known) / len(known) if known else None)
        values.append(row)
    figure = heat(list(found), short_layers(names), values, unit="intruders")
    most = max(
        ((v, method, name) for method, row in zip(found, values) for name, v in zip(names, row) if v is not None),
        default=(0.0, MISSING, MISSING),
    )
    words = f"Intruders below {threshold:g} by method and layer; most: {most[1]} in {most[2]}, {most[0]:.1f}."
    caption = "Mean over seeds. Empty: the method does not change that weight."
    return Panel("intruders-layers", f"Intruders below {threshold:g} in each weight", caption, words, figure)
