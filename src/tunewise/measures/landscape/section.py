"""What the report says of the loss around the minima: planes, all methods on one scale, and figures of sharpness."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewise.advise.statistics import mean_interval
from tunewise.measures.landscape import figures as drawn
from tunewise.measures.landscape.figures import Scale, Surface
from tunewise.measures.landscape.files import write_landscapes
from tunewise.number_format import MISSING
from tunewise.pages import figures, palette
from tunewise.pages.figures import GapBar
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData
from tunewise.spec import StudySpec
from tunewise.store.records import Measured, RunRecord

FOLDER = "landscape"
"""Beside the report: the same figures as files."""
_SHOWN = 4
"""Methods whose planes stand open in the page; the others are folded."""
_TITLES = {"random": "random plane", "pca": "plane of the path"}


def section(data: ReportData) -> Section | None:
    """Surfaces of the first seed of each method, and sharpness over all seeds; None where neither was measured."""
    planes = data.values("landscape")
    sharp = data.values("sharpness")
    if not planes and not sharp:
        return None
    words: list[str] = []
    panels: list[Panel] = []
    folded: list[Panel] = []
    if planes:
        words += _words(planes)
        panels, folded = _planes(data, planes)
    if sharp:
        words.append(_sharpness_words(sharp[0][1]))
        panels.append(_sharpness_panel(data, sharp))
    grids = [_grid(planes, sharp)]
    notes = [*data.missing("landscape"), *data.missing("sharpness"), *_missing_planes(planes), *_missing_hessian(sharp)]
    if planes:
        there = importlib.util.find_spec("matplotlib") is not None
        files = f"the folder {FOLDER}/ beside this page" if there else "after pip install 'tunewise[landscape]'"
        notes.append(f"The planes as SVG and PNG: {files}.")
    return Section("landscape", "Loss landscape", words, panels, grids, folded, "Surfaces and the other methods", notes)


def surfaces_of(values: Mapping[str, Any], kind: str) -> Surface | None:
    """A stored surface as the figures take it; None where the run has none of that kind."""
    found = values["surfaces"].get(kind)
    if found is None:
        return None
    if kind == "random":
        return Surface(found["x"], found["y"], found["loss"])
    shares = [f"{name} principal direction ({share:.0%})" for name, share in zip(("1st", "2nd"), found["explained"])]
    path = found["path"]
    places = list(zip(path["x"], path["y"], strict=True))
    return Surface(found["x"], found["y"], found["loss"], places, path["step"], (shares[0], shares[1]))


def _levels(planes: Sequence[tuple[RunRecord, Mapping[str, Any]]]) -> dict[str, float]:
    """The loss at the edge of each method's basin."""
    return {record.spec.method.label: float(values["level"]) for record, values in planes}


def write_files(
    folder: Path, comparison: StudySpec, records: Sequence[RunRecord], measured: Mapping[str, Measured]
) -> list[Path]:
    """The planes of finished runs as SVG and PNG in `folder`; nothing where there are none, or no matplotlib."""
    planes = [(r, v) for r in records if r.id in measured and (v := measured[r.id].values) is not None]
    if not planes:
        return []
    surfaces = {
        kind: {r.spec.method.label: s for r, v in planes if (s := surfaces_of(v, kind)) is not None} for kind in _TITLES
    }
    marks = palette.marks([m.label for m in comparison.methods] + [r.spec.method.label for r, _ in planes])
    return write_landscapes(folder, surfaces, _levels(planes), marks)


def _planes(data: ReportData, planes: Sequence[tuple[RunRecord, dict[str, Any]]]) -> tuple[list[Panel], list[Panel]]:
    """(open, folded) panels."""
    found = {
        kind: {r.spec.method.label: s for r, v in planes if (s := surfaces_of(v, kind)) is not None}
        for kind in ("random", "pca")
    }
    scale = Scale.of([s for of_kind in found.values() for s in of_kind.values()])
    panels: list[Panel] = []
    folded: list[Panel] = []
    random = found["random"]
    if len(random) > 1:
        panels, folded = _together(data, planes, random, scale)
    places = list(dict.fromkeys(r.spec.method.label for r, _ in planes))
    important = [m for m in (data.recommendation.choice if data.recommendation else None, _reference(data)) if m]
    order = [*(m for m in places if m in important), *(m for m in places if m not in important)]
    for place, method in enumerate(order):
        seed = next(r.spec.seed for r, _ in planes if r.spec.method.label == method)
        for kind in ("random", "pca"):
            surface = found[kind].get(method)
            if surface is None:
                continue
            title = f"{method}: {_TITLES[kind]}"
            words = f"Loss of {method}, seed {seed}, over its {_TITLES[kind]}: {_in_words(surface)}."
            flat = Panel(f"{kind}-contour-{place}", title, "", words, drawn.contour(surface, scale))
            (panels if place < _SHOWN else folded).append(flat)
            folded.append(Panel(f"{kind}-relief-{place}", title, "", words, drawn.relief(surface, scale)))
    return panels, folded


def _together(
    data: ReportData,
    planes: Sequence[tuple[RunRecord, dict[str, Any]]],
    random: Mapping[str, Surface],
    scale: Scale,
) -> tuple[list[Panel], list[Panel]]:
    """All methods in one figure: surfaces, basins, and lines through the centre."""
    levels = _levels(planes)
    shares = "; ".join(f"{method} {_inside(surface, levels[method]):.0%}" for method, surface in random.items())
    panels = [
        Panel(
            "reliefs-figure",
            "All methods, random plane",
            "Turn it by dragging.",
            f"Surfaces of {', '.join(random)} over the plane of two random directions.",
            drawn.reliefs(random, scale, data.marks),
            filtered=True,
        ),
        Panel(
            "basins-figure",
            "Basins in the random plane",
            "On its line a method's loss is log(classes) / 4 above its minimum's: the wider, the flatter.",
            f"Share of the random plane in which the loss is less than log(classes) / 4 above the minimum's: {shares}.",
            drawn.basins(random, levels, data.marks),
            filtered=True,
        ),
    ]
    line = Panel(
        "profiles-figure",
        "Along the first random direction",
        "",
        f"Loss along one random direction through the minimum of {', '.join(random)}.",
        drawn.profiles(random, data.marks),
        filtered=True,
    )
    return panels, [line]


def _words(planes: Sequence[tuple[RunRecord, dict[str, Any]]]) -> list[str]:
    values = planes[0][1]
    kinds = {kind for _, v in planes for kind in v["surfaces"]}
    said = [
        f"The loss on the same {values['batches'] * values['batch_size']} training examples at every point of a plane "
        "through the trained weights, adapters merged into them. The cross is the selected epoch; colours and heights "
        "are logarithmic, and one scale serves all methods.",
    ]
    if "random" in kinds:
        said.append(
            "The random plane is spanned by two directions drawn once for all methods and scaled to each method's "
            "weights, row by row, so 1 is as far as each row is long (arXiv 1712.09913). It says how the loss rises "
            "around the minimum; the training's path is not in it, since random directions hardly meet it."
        )
    if "pca" in kinds:
        said.append(
            "The plane of the path is spanned by the two principal directions of the method's own training, so each "
            "has its own, in units of weight; the line is the way of the optimizer, and the shares at the axes say "
            "how much of its way lies in the plane."
        )
    return said


def _sharpness_words(values: Mapping[str, Any]) -> str:
    return (
        "Sharpness is the second derivative of the loss along random directions scaled like those of the random plane, "
        f"averaged; ε-sharpness is the rise of the loss in the worst direction found, relative to 1 + loss. Both over "
        f"all {values['weights']:,} weights of the merged model, so they mean the same for every method. The Hessian's "
        "figures are in each method's own trained parameters, and are not comparable between methods that scale them "
        "differently."
    )


def _sharpness_panel(data: ReportData, sharp: Sequence[tuple[RunRecord, dict[str, Any]]]) -> Panel:
    bars = []
    for label in dict.fromkeys(r.spec.method.label for r, _ in sharp):
        seeds = sorted((r.spec.seed, float(v["sharpness"])) for r, v in sharp if r.spec.method.label == label)
        mean = mean_interval([value for _, value in seeds])
        bars.append(GapBar(label, mean.mean, mean.low, mean.high, seeds))
    said = "; ".join(f"{bar.method} {bar.mean:.4g}" for bar in bars)
    caption = "Large mark: mean over seeds, with its 95 % interval. Small rings: the seeds."
    figure = figures.gap_per_method(bars, data.marks, axis="sharpness, nats", unit="nats")
    return Panel("sharpness-figure", "Sharpness", caption, f"Sharpness in nats: {said}.", figure)


def _grid(
    planes: Sequence[tuple[RunRecord, dict[str, Any]]], sharp: Sequence[tuple[RunRecord, dict[str, Any]]]
) -> Grid:
    """Figures with intervals over batches of each method's first seed."""
    plane = _first(planes)
    figure = _first(sharp)
    columns = [
        "method",
        "loss",
        "sharpness",
        "ε-sharpness, %",
        "basin in the random plane",
        "Hessian: trace",
        "largest",
    ]
    rows = []
    for label in {**plane, **figure}:
        p, f = plane.get(label, {}), figure.get(label, {})
        of = f or p
        sharpness = {"value": of["sharpness"], "low": of["sharpness_low"], "high": of["sharpness_high"]}
        hessian = f.get("hessian") or {}
        top = (hessian.get("eigenvalues") or [None])[0]
        rows.append(
            [
                label,
                _with_interval(of["loss"]),
                _with_interval(sharpness),
                _with_interval(f.get("epsilon_sharpness")),
                _with_interval(p.get("surfaces", {}).get("random", {}).get("area")),
                _with_interval(hessian.get("trace")),
                _with_interval(top),
            ]
        )
    kept = [i for i in range(len(columns)) if i < 3 or any(row[i] != MISSING for row in rows)]
    return Grid(
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        "First seed of each method, ± the 95 % interval over batches. Basin: the area of the random plane where the "
        "loss is at most log(classes) / 4 above the centre's.",
    )


def _first(found: Sequence[tuple[RunRecord, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for record, values in found:
        first.setdefault(record.spec.method.label, values)
    return first


def _with_interval(figure: Mapping[str, float] | None) -> str:
    if not figure:
        return MISSING
    half = figure["value"] - figure["low"]
    return f"{figure['value']:.3g} ± {half:.2g}".replace("-", "−")


def _missing_planes(planes: Sequence[tuple[RunRecord, dict[str, Any]]]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for record, values in planes:
        for kind, reason in values["missing"].items():
            reasons.setdefault(f"no {_TITLES[kind]}: {reason}", []).append(record.spec.method.label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in reasons.items()]


def _missing_hessian(sharp: Sequence[tuple[RunRecord, dict[str, Any]]]) -> list[str]:
    reasons = dict.fromkeys(v["hessian_missing"] for _, v in sharp if "hessian_missing" in v)
    return [f"No figures of the Hessian: {reason}." for reason in reasons]


def _reference(data: ReportData) -> str | None:
    return data.summaries[0].reference if data.summaries else None


def _in_words(surface: Surface) -> str:
    values = [v for row in surface.loss for v in row if v is not None]
    return f"from {min(values):.3g} to {max(values):.3g}"


def _inside(surface: Surface, level: float) -> float:
    values = [v for row in surface.loss for v in row]
    return sum(v is not None and v <= level for v in values) / len(values)
