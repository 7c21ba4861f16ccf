"""The report section of spectra: how many directions of dW count, how large they are, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tunewise.measures.base import Measure, SectionData
from tunewise.measures.section_parts import (
    FAMILY_COLOURS,
    bars_panel,
    common_layers,
    family_marks,
    geometric_mean,
    has_family,
    plus_minus,
)
from tunewise.measures.spectrum.compute import LayerSpectrum, SpectrumResult, compute
from tunewise.number_format import MISSING
from tunewise.pages.figures import Curve, lines
from tunewise.pages.section import Panel, Section, Table
from tunewise.registry import MEASURES

LayerValue = Callable[[LayerSpectrum], float | None]


def section(data: SectionData[SpectrumResult]) -> Section:
    layers = common_layers([result.layers for _, result in data.runs])
    where = (
        f"All figures are means over the {len(layers)} weights that all methods change."
        if layers
        else "Each method's own weights (no weight is changed by all of them)."
    )
    text = (
        "The update dW of each weight, decomposed into directions: its effective rank is how many of them count (exp "
        "of the entropy of the singular values), its relative norm how far the weight moved, and its energy in W0's "
        f"top space how much of it lies where the pretrained weight is strong. {where}"
    )
    if has_family([record for record, _ in data.runs]):
        text += f" {FAMILY_COLOURS}"
    notes = ["Energies are in units of what a random update would have there: 1 is chance.", *data.missing]
    panels = [_values_panel(data, layers), _ranks_panel(data, layers)]
    return Section("spectrum", "Spectra of the updates", [text], panels, [_table(data, layers)], notes=notes)


def layer_mean(result: SpectrumResult, layers: Sequence[str], value: LayerValue) -> float | None:
    """Mean over layers (all of them where none are named); None where no layer has a value."""
    numbers = [v for name in (layers or result.layers) if (v := value(result.layers[name])) is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def _values_panel(data: SectionData[SpectrumResult], layers: Sequence[str]) -> Panel:
    curves = {}
    for label in data.labels:
        spectra = [values for result in data.of_method(label) if (values := _mean_values(result, layers))]
        places = list(zip(*spectra))
        if places:
            mean = [geometric_mean(place) for place in places]
            curves[label] = Curve(range(1, len(places) + 1), mean, list(map(min, places)), list(map(max, places)))
    few = all(len(curve.x) <= 16 for curve in curves.values())
    figure = lines(
        curves,
        family_marks([record for record, _ in data.runs], data.marks),
        x_title="place of the singular value",
        y_title="singular value of dW",
        log_y=True,
        markers=few,
    )
    if not few:  # full fine-tuning beside a few directions
        figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64], title_text="place (log scale)")
    ends = "; ".join(f"{label} from {curve.mean[0]:.3g} to {curve.mean[-1]:.3g}" for label, curve in curves.items())
    caption = "Geometric mean over weights and seeds; bands go from the lowest seed to the highest."
    return Panel("spectrum-figure", "Singular values of dW", caption, f"Singular values of dW: {ends}.", figure)


def _mean_values(result: SpectrumResult, layers: Sequence[str]) -> list[float]:
    """Geometric mean over layers at each place that all of them reach; layers that learnt nothing are left out."""
    spectra = [values for name in (layers or result.layers) if (values := result.layers[name].values)]
    return [geometric_mean(place) for place in zip(*spectra)]


def _ranks_panel(data: SectionData[SpectrumResult], layers: Sequence[str]) -> Panel:
    ranks = data.by_seed(lambda result: layer_mean(result, layers, lambda layer: layer.effective_rank) or 0.0)
    axis = "effective rank of dW"
    panel = bars_panel("effective-rank-figure", "Effective rank of dW", ranks, data.marks, axis=axis, digits=".2f")
    means = [math.fsum(by_seed.values()) / len(by_seed) for by_seed in ranks.values()]
    if min(means) > 0 and max(means) > 12 * min(means):
        panel.figure.update_xaxes(type="log", rangemode="normal", title_text=f"{axis} (log scale)", dtick=1)
    return panel


def _table(data: SectionData[SpectrumResult], layers: Sequence[str]) -> Table:
    columns: list[tuple[str, LayerValue]] = [
        ("effective rank", lambda layer: layer.effective_rank),
        ("stable rank", lambda layer: layer.stable_rank),
        ("norm, % of W0's", lambda layer: None if layer.relative_norm is None else 100 * layer.relative_norm),
        (
            f"energy in W0's top {next(iter(data.first.layers.values())).top}, output side",
            lambda layer: over_chance(layer, layer.energy_left, 0),
        ),
        ("input side", lambda layer: over_chance(layer, layer.energy_right, 1)),
    ]
    rows = []
    for label in data.labels:
        results = data.of_method(label)
        ranks = {layer.rank for result in results for layer in result.layers.values()}
        row = [label, f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"]
        for _, value in columns:
            means = [mean for result in results if (mean := layer_mean(result, layers, value)) is not None]
            row.append(plus_minus(means, ".2f") if means else MISSING)
        rows.append(row)
    return Table(["method", "rank", *(title for title, _ in columns)], rows)


def over_chance(layer: LayerSpectrum, energy: float | None, side: int) -> float | None:
    """An energy over that of a random dW, k / n (side 0) or k / m (side 1)."""
    return None if energy is None else energy / (layer.top / layer.shape[side])


MEASURES.register("spectrum", Measure("spectrum", "spectra", compute, SpectrumResult, section))
