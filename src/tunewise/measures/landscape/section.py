"""The report section of landscapes: planes through the minima, all methods on one scale."""

from __future__ import annotations

from collections.abc import Mapping

from tunewise.measures._estimate import Estimate
from tunewise.measures.base import Measure, SectionData
from tunewise.measures.landscape import figures
from tunewise.measures.landscape.compute import Kind, LandscapeResult, LandscapeSettings, Surface, compute
from tunewise.measures.landscape.figures import Scale
from tunewise.measures.section_parts import estimate_table
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

_SHOWN = 4
"""Methods with planes that are not collapsed."""
TITLES: dict[Kind, str] = {"random": "random plane", "pca": "plane of the path"}
Data = SectionData[LandscapeResult]
Surfaces = Mapping[Kind, Mapping[str, Surface]]


def section(data: Data) -> Section:
    surfaces = surfaces_of(data)
    panels, collapsed = _panels(data, surfaces)
    notes = [*data.missing, *_missing_planes(data)]
    title = "Lines and the other methods"
    return Section(
        "landscape", "Loss landscape", _paragraphs(data, surfaces), panels, [_table(data)], collapsed, title, notes
    )


def surfaces_of(data: Data) -> Surfaces:
    """The surfaces of each method's first seed, by kind and label."""
    first = {record.spec.method.label: result for record, result in reversed(data.runs)}
    return {kind: {m: first[m].surfaces[kind] for m in data.labels if kind in first[m].surfaces} for kind in TITLES}


def _panels(data: Data, surfaces: Surfaces) -> tuple[list[Panel], list[Panel]]:
    """Panels that are shown, and collapsed ones."""
    scale = Scale.of([surface for of_kind in surfaces.values() for surface in of_kind.values()])
    panels: list[Panel] = []
    collapsed: list[Panel] = []
    if surfaces["random"]:
        panels, collapsed = _all_methods(data, surfaces["random"], scale)
    seeds = {record.spec.method.label: record.spec.seed for record, _ in reversed(data.runs)}
    for place, method in enumerate(sorted(data.labels, key=lambda label: label not in data.highlighted)):
        for kind, name in TITLES.items():
            surface = surfaces[kind].get(method)
            if surface is None:
                continue
            title = f"{method}: {name}"
            losses = [v for row in surface.loss for v in row if v is not None]
            alt_text = (
                f"Loss of {method}, seed {seeds[method]}, over its {name}: from {min(losses):.3g} to {max(losses):.3g}."
            )
            contour = Panel(f"{kind}-contour-{place}", title, "", alt_text, figures.contour(surface, scale))
            (panels if place < _SHOWN else collapsed).append(contour)
    return panels, collapsed


def _all_methods(data: Data, random: Mapping[str, Surface], scale: Scale) -> tuple[list[Panel], list[Panel]]:
    """All methods in one figure: surfaces, basins, and lines through the centre."""
    levels = {record.spec.method.label: result.level for record, result in data.runs}
    names = ", ".join(random)
    shares = "; ".join(f"{method} {_share_below(surface, levels[method]):.0%}" for method, surface in random.items())
    reliefs = Panel(
        "reliefs-figure",
        "All methods, random plane",
        "Turn it by dragging.",
        f"Surfaces of {names} over the plane of two random directions.",
        figures.reliefs(random, scale, data.marks),
        filtered=True,
    )
    basins = Panel(
        "basins-figure",
        "Basins in the random plane",
        "On its line a method's loss is log(classes) / 4 above its minimum's: the wider, the flatter.",
        f"Share of the random plane in which the loss is less than log(classes) / 4 above the minimum's: {shares}.",
        figures.basins(random, levels, data.marks),
        filtered=True,
    )
    profiles = Panel(
        "profiles-figure",
        "Along the first random direction",
        "",
        f"Loss along one random direction through the minimum of {names}.",
        figures.profiles(random, data.marks),
        filtered=True,
    )
    return [reliefs, basins], [profiles]


def _paragraphs(data: Data, surfaces: Surfaces) -> list[str]:
    paragraphs = [
        f"The loss on the same {data.first.batches * data.first.batch_size} training examples at every point of a "
        "plane through the trained weights, adapters merged into them. The cross is the selected epoch; colours and "
        "heights are logarithmic, on one scale for all methods.",
    ]
    if surfaces["random"]:
        paragraphs.append(
            "The random plane is spanned by two directions drawn once for all methods and scaled to each method's "
            "weights, row by row, so 1 is as far as each row is long (arXiv 1712.09913). It shows how the loss rises "
            "around the minimum; the training's path is not in it, since random directions are almost orthogonal to it."
        )
    if surfaces["pca"]:
        paragraphs.append(
            "The plane of the path is spanned by the two principal directions of the method's own training, so each "
            "has its own, in units of weight; the line is the path of the optimizer, and the shares at the axes say "
            "how much of the path lies in the plane."
        )
    return paragraphs


def _table(data: Data) -> Table:
    loss: dict[str, Estimate | None] = {}
    sharpness: dict[str, Estimate | None] = {}
    basin: dict[str, Estimate | None] = {}
    for label in data.labels:
        result = data.of_method(label)[0]
        loss[label], sharpness[label] = result.loss, result.sharpness
        basin[label] = result.surfaces["random"].area if "random" in result.surfaces else None
    columns = {"loss": loss, "sharpness in the random plane": sharpness, "basin in the random plane": basin}
    caption = (
        "First seed of each method, ± the 95 % interval over batches. Basin: the area of the random plane where the "
        "loss is at most log(classes) / 4 above the centre's."
    )
    return estimate_table(columns, caption)


def _missing_planes(data: Data) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for record, result in data.runs:
        for kind, reason in result.missing.items():
            reasons.setdefault(f"no {TITLES[kind]}: {reason}", []).append(record.spec.method.label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}." for reason, names in reasons.items()]


def _share_below(surface: Surface, level: float) -> float:
    values = [v for row in surface.loss for v in row]
    return sum(v is not None and v <= level for v in values) / len(values)


MEASURES.register(
    "landscape",
    Measure(
        "landscape",
        "loss landscape",
        compute,
        LandscapeResult,
        section,
        settings=LandscapeSettings,
        first_seed_only=True,
    ),
)
