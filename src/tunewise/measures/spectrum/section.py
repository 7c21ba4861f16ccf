"""What the report says of the spectra of what was learnt: how many directions count, how large, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunewise.advise.statistics import mean_interval
from tunewise.measures.families import family_marks, has_family
from tunewise.measures.intruders.section import common_layers
from tunewise.number_format import MISSING
from tunewise.pages import figures
from tunewise.pages.figures import GapBar, Line, lines
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

Seeds = Mapping[int, Mapping[str, Any]]


def section(data: ReportData) -> Section | None:
    """Singular values and effective ranks as figures, the rest in a table; None where nothing was measured."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record, values in data.values("spectrum"):
        found.setdefault(record.spec.method.label, {})[record.spec.seed] = values
    if not found:
        return None
    layers = common_layers([v for seeds in found.values() for v in seeds.values()])
    where = (
        f"All figures are means over the {len(layers)} weights that all methods change."
        if layers
        else "Each method's own weights (no weight is changed by all of them)."
    )
    words = [
        "The update dW of each weight, taken apart into directions: its effective rank is how many of them count (exp "
        "of the entropy of the singular values), its relative norm how far the weight moved, and its energy in W0's "
        "top space how much of it lies where the pretrained weight is strong. "
        + where
        + (" A chain has its parent's colour: the chain solid, the parent dashed." if has_family(data.records) else ""),
    ]
    panels = [_values(data, found, layers), _ranks(data, found, layers)]
    notes = ["Energies are in units of what a random update would have there: 1 is chance.", *data.missing("spectrum")]
    return Section("spectrum", "Spectra of the updates", words, panels, [_grid(found, layers)], notes=notes)


def layer_mean(values: Mapping[str, Any], layers: Sequence[str], key: str) -> float | None:
    """Mean of a figure over layers (all where none are given); None where no layer has it."""
    known = [v for name in (layers or values["layers"]) if (v := values["layers"][name][key]) is not None]
    return math.fsum(known) / len(known) if known else None


def _values(data: ReportData, found: Mapping[str, Seeds], layers: Sequence[str]) -> Panel:
    drawn = []
    for label, seeds in found.items():
        curves = [c for v in seeds.values() if (c := _mean_values(v, layers))]
        if not curves:
            continue
        length = min(map(len, curves))
        at = list(zip(*(c[:length] for c in curves)))
        x = list(range(1, length + 1))
        drawn.append(Line(label, x, [_geometric(c) for c in at], [min(c) for c in at], [max(c) for c in at]))
    marks = family_marks(data.records, data.marks)
    few = all(len(line.x) <= 16 for line in drawn)
    figure = lines(
        drawn, marks, across="place of the singular value", up="singular value of dW", log_y=True, markers=few
    )
    if not few:  # full fine-tuning beside a few directions
        figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64], title_text="place (log scale)")
    words = "; ".join(f"{line.method} from {line.mean[0]:.3g} to {line.mean[-1]:.3g}" for line in drawn)
    caption = "Geometric mean over weights and seeds; bands go from the lowest seed to the highest."
    return Panel("spectrum-figure", "Singular values of dW", caption, f"Singular values of dW: {words}.", figure)


def _mean_values(values: Mapping[str, Any], layers: Sequence[str]) -> list[float]:
    """Geometric mean over layers at each place, as far as all of them reach; layers that learnt nothing aside."""
    spectra = [s for name in (layers or values["layers"]) if (s := values["layers"][name]["values"])]
    return [_geometric(at) for at in zip(*spectra)]


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))


def _ranks(data: ReportData, found: Mapping[str, Seeds], layers: Sequence[str]) -> Panel:
    bars = []
    for label, seeds in found.items():
        by_seed = {seed: layer_mean(v, layers, "effective_rank") or 0.0 for seed, v in seeds.items()}
        mean = mean_interval(list(by_seed.values()))
        bars.append(GapBar(label, mean.mean, mean.low, mean.high, sorted(by_seed.items())))
    figure = figures.gap_per_method(bars, data.marks, axis="effective rank of dW", unit="")
    means = [bar.mean for bar in bars if bar.mean > 0]
    if means and max(means) > 12 * min(means) and len(means) == len(bars):
        figure.update_xaxes(type="log", rangemode="normal", title_text="effective rank of dW (log scale)", dtick=1)
    caption = "Large mark: mean over seeds, with its 95 % interval. Small rings: the seeds."
    words = "Effective rank: " + "; ".join(f"{bar.method} {bar.mean:.2f}" for bar in bars) + "."
    return Panel("effective-rank-figure", "Effective rank of dW", caption, words, figure)


def _grid(found: Mapping[str, Seeds], layers: Sequence[str]) -> Grid:
    rows = []
    for label, seeds in found.items():
        runs = list(seeds.values())
        ranks = {x["rank"] for v in runs for x in v["layers"].values()}
        rank = f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"

        def mean(of: Callable[[Mapping[str, Any]], float | None], digits: int, runs: Sequence[Any] = runs) -> str:
            values = [value for v in runs if (value := of(v)) is not None]
            if not values:
                return MISSING
            found = mean_interval(values)
            spread = "" if found.half_width is None else f" ± {found.half_width:.{digits}f}"
            return f"{found.mean:.{digits}f}{spread}"

        rows.append(
            [
                label,
                rank,
                mean(lambda v: layer_mean(v, layers, "effective_rank"), 2),
                mean(lambda v: layer_mean(v, layers, "stable_rank"), 2),
                mean(lambda v: _percent(layer_mean(v, layers, "relative_norm")), 2),
                mean(lambda v: _over_chance(v, layers, "energy_left", 0), 2),
                mean(lambda v: _over_chance(v, layers, "energy_right", 1), 2),
            ]
        )
    top = next(iter(next(iter(found.values())).values()))
    space = next(iter(top["layers"].values()))["top"]
    columns = [
        "method",
        "rank",
        "effective rank",
        "stable rank",
        "norm, % of W0's",
        f"energy in W0's top {space}, output side",
        "input side",
    ]
    return Grid(columns, rows)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _over_chance(values: Mapping[str, Any], layers: Sequence[str], key: str, side: int) -> float | None:
    """Mean of the energy over k / n (or k / m)."""
    known = [
        layer[key] / (layer["top"] / layer["shape"][side])
        for name in (layers or values["layers"])
        if (layer := values["layers"][name])[key] is not None
    ]
    return math.fsum(known) / len(known) if known else None
