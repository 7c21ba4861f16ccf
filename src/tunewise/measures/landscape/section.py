"""The report section of landscapes: planes through the minima, all methods on one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tunewise.measures._estimate import Estimate
from tunewise.measures.base import Measure, SectionData
from tunewise.measures.landscape import figures
from tunewise.measures.landscape.compute import LandscapeResult, LandscapeSettings, Surface, compute
from tunewise.measures.landscape.figures import Scale
from tunewise.measures.section_parts import estimate_table
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

_SHOWN = 4
"""Methods with planes that are not collapsed."""
Data = SectionData[LandscapeResult]


def section(data: Data) -> Section:
    first = {record.spec.method.label: (record, result) for record, result in reversed(data.runs)}
    surfaces = {label: first[label][1].surface for label in data.labels}
    scale = Scale.of(list(surfaces.values()))
    panels, collapsed = _all_methods(data, surfaces, scale)
    for place, method in enumerate(sorted(data.labels, key=lambda label: label not in data.highlighted)):
        losses = [v for row in surfaces[method].loss for v in row if v is not None]
        alt_text = (
            f"Loss of {method}, seed {first[method][0].spec.seed}, over its random plane: from {min(losses):.3g} to "
            f"{max(losses):.3g}."
        )
        figure = figures.contour(surfaces[method], scale)
        contour = Panel(f"random-contour-{place}", f"{method}: random plane", "", alt_text, figure)
        (panels if place < _SHOWN else collapsed).append(contour)
    paragraphs = [
        f"The loss on the same {data.first.batches * data.first.batch_size} training examples at every point of a "
        "plane through the trained weights, adapters merged into them. The cross is the selected epoch; colours and "
        "heights are logarithmic, on one scale for all methods.",
        "The random plane is spanned by two directions drawn once for all methods and scaled to each method's "
        "weights, row by row, so 1 is as far as each row is long (arXiv 1712.09913). It shows how the loss rises "
        "around the minimum; the training's path is not in it, since random directions are almost orthogonal to it.",
    ]
    title = "Lines and the other methods"
    return Section("landscape", "Loss landscape", paragraphs, panels, [_table(data)], collapsed, title, data.missing)


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


def _table(data: Data) -> Table:
    columns: dict[str, Callable[[LandscapeResult], Estimate | None]] = {
        "loss": lambda result: result.loss,
        "sharpness in the random plane": lambda result: result.sharpness,
        "basin in the random plane": lambda result: result.surface.area,
    }
    table = estimate_table(data, columns)
    basin = "Basin: the area of the random plane where the loss is at most log(classes) / 4 above the centre's."
    return replace(table, caption=f"{table.caption} {basin}")


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
