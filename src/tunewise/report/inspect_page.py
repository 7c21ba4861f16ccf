"""The result of `tunewise inspect` as rows of tables, for the terminal and the page alike, and as an offline page."""

from __future__ import annotations

from pathlib import Path

from tunewise import number_format as numbers
from tunewise.inspecting import Inspection
from tunewise.measures.intruders.section import definition
from tunewise.measures.section_parts import THRESHOLD_GRID, geometric_mean, short_layers
from tunewise.measures.spectrum.section import over_chance, values_panel
from tunewise.number_format import MISSING
from tunewise.pages import palette
from tunewise.pages.figures import Curve, layer_heat_map, lines, mark_range
from tunewise.pages.page import render_page, write_page
from tunewise.pages.section import Panel, Section, Table

Rows = tuple[list[str], list[list[str]]]
"""Titles of the columns, and the rows; the first column holds the rows' names."""

_SHORT = ["layer", "shape", "rank", "eff.", "stable", "norm %", "out ×", "in ×", "intruders", "min |cos|"]
_LONG = [
    "layer",
    "shape",
    "rank",
    "effective rank",
    "stable rank",
    "norm, % of W0's",
    "energy out, × chance",
    "energy in, × chance",
    "intruders",
    "lowest |cos|",
]


def layer_rows(found: Inspection, *, narrow: bool = False) -> Rows:
    """A row for each layer, and one for all together; `narrow`: titles for a terminal, explained by `total_lines`."""
    spectrum, intruders = found.spectrum, found.intruders
    rows = []
    for (name, layer), short in zip(spectrum.layers.items(), short_layers(list(spectrum.layers))):
        top = intruders.layers[name]
        rows.append(
            [
                short,
                "×".join(map(str, layer.shape)),
                str(layer.rank),
                f"{layer.effective_rank:.2f}",
                f"{layer.stable_rank:.2f}",
                _number(layer.relative_norm, 100),
                _number(over_chance(layer, layer.energy_left, 0)),
                _number(over_chance(layer, layer.energy_right, 1)),
                f"{top.count(intruders.threshold)} / {len(top.cosines)}",
                f"{min(top.cosines):.3f}",
            ]
        )
    lowest = min(min(layer.cosines) for layer in intruders.layers.values())
    ranks = [f"{spectrum.effective_rank:.2f}", f"{spectrum.stable_rank:.2f}", _number(spectrum.relative_norm, 100)]
    counts = f"{intruders.count()} / {intruders.vectors}"
    rows.append(["all", str(len(rows)), "", *ranks, "", "", counts, f"{lowest:.3f}"])
    return list(_SHORT if narrow else _LONG), rows


def total_lines(found: Inspection) -> list[str]:
    """What the columns of a terminal mean, and what was left out."""
    top = found.intruders.top_k
    lines = [
        "eff., stable: effective and stable rank of dW; norm %: of W0's Frobenius norm; out ×, in ×: energy of dW in "
        f"W0's top {_space(found)} output and input directions, over a random dW's.",
        f"intruders: of {'all' if top == 'all' else f'the top {top}'} left singular vectors of W0 + dW, those whose "
        f"largest |cos| with W0's is below {found.intruders.threshold:g}. A random direction has about "
        f"{_baseline(found)}.",
    ]
    return [*lines, *_left_out(found)]


def threshold_rows(found: Inspection) -> Rows:
    """Intruders in all layers at every tenth."""
    thresholds = [t / 10 for t in range(1, 11)]
    counts = [f"{found.intruders.count(t):,}" for t in thresholds]
    return ["below", *(f"{t:g}" for t in thresholds)], [["vectors", *counts]]


def scaled_rows(found: Inspection) -> Rows:
    """Intruders left and the loss at each factor; no rows where nothing was scaled."""
    columns = ["factor", "intruders left"]
    rows = [[f"{s.factor:g}", str(s.count)] for s in found.scaled_intruders]
    if any(s.loss is not None for s in found.scaled_intruders):
        metrics = list(found.scaled_intruders[0].metrics)
        columns += ["loss, nats", *(metric.replace("_", " ") for metric in metrics)]
        for row, s in zip(rows, found.scaled_intruders):
            row += [numbers.nats(s.loss or 0.0), *(f"{s.metrics[metric]:.4f}" for metric in metrics)]
    return columns, rows


def sections(found: Inspection) -> list[Section]:
    """Spectra, intruders, and the causal check where it was made."""
    spectra = (
        "The update dW of each weight, decomposed into directions. Effective rank: how many of them count (exp of the "
        "entropy of the singular values). Stable rank: ||dW||_F² / ||dW||₂². Energy: how much of dW lies in W0's top "
        f"{_space(found)} directions, in units of what a random update would have there."
    )
    made = [
        Section(
            "spectrum",
            "Spectra of dW",
            [spectra, *_left_out(found)],
            [_values_panel(found), _norm_panel(found)],
            [Table(*layer_rows(found))],
        ),
        Section(
            "intruders",
            "Intruder dimensions",
            [f"{definition(found.intruders)} A random direction has about {_baseline(found)}."],
            [_curve_panel(found)],
            [Table(*threshold_rows(found))],
            [_cosine_panel(found)],
            "Vector by vector",
            wide=True,
        ),
    ]
    columns, rows = scaled_rows(found)
    if rows:
        on = f" Loss and metrics on {found.scaled_on}." if found.scaled_on else ""
        text = (
            "The intruders' singular values times a factor: 1 is the model as it is, 0 removes them. If the loss moves "
            f"with the factor, the intruders matter.{on}"
        )
        made.append(Section("scaled", "Intruders scaled", [text], tables=[Table(columns, rows)]))
    return made


def write_inspect_page(found: Inspection, path: Path) -> None:
    """The offline page. Raises `StoreError` where it can't be written."""
    page = render_page(
        "sections.html.jinja",
        title=f"Inside {found.of}",
        subject=f"Base model {found.base}; {found.family}; {len(found.spectrum.layers)} weights",
        sections=sections(found),
        took=numbers.seconds(found.seconds),
    )
    write_page(path, page)


def _space(found: Inspection) -> str:
    spaces = sorted({layer.top for layer in found.spectrum.layers.values()})
    return f"{spaces[0]}" if len(spaces) == 1 else f"{spaces[0]} to {spaces[-1]}"


def _baseline(found: Inspection) -> str:
    baselines = [layer.baseline for layer in found.intruders.layers.values()]
    low, high = min(baselines), max(baselines)
    return f"{low:.3f}" + (f" to {high:.3f}" if high - low > 5e-4 else "")


def _left_out(found: Inspection) -> list[str]:
    names = found.left_out
    if not names:
        return []
    return [f"Changed modules that are not linear layers, left out: {', '.join(names[:3])}{', ...' * bool(names[3:])}."]


def _values_panel(found: Inspection) -> Panel:
    places = list(zip(*(layer.values for layer in found.spectrum.layers.values() if layer.values)))
    mean = [geometric_mean(place) for place in places]
    curve = Curve(range(1, len(places) + 1), mean, list(map(min, places)), list(map(max, places)))
    caption = "Geometric mean over layers; the band goes from the smallest layer to the largest."
    panel = values_panel({"dW": curve} if places else {}, palette.marks(["dW"]), caption)
    panel.figure.update_layout(showlegend=False)
    return panel


def _norm_panel(found: Inspection) -> Panel:
    layers = found.spectrum.layers
    values: list[list[float | None]] = [
        [None if x.relative_norm is None else 100 * x.relative_norm for x in layers.values()],
        [x.effective_rank for x in layers.values()],
        [x.stable_rank for x in layers.values()],
    ]
    scaled = [[None if v is None else v / max((x for x in row if x), default=1.0) for v in row] for row in values]
    rows = ["norm, % of W0's", "effective rank", "stable rank"]
    figure = layer_heat_map(rows, short_layers(list(layers)), scaled, unit="", shown=values)
    alt_text = "Norm, effective and stable rank of dW, layer by layer; the numbers are in the table."
    return Panel("layers-figure", "Layer by layer", "Colour: from nothing to the row's largest.", alt_text, figure)


def _curve_panel(found: Inspection) -> Panel:
    intruders = found.intruders
    layers = intruders.layers.values()
    counts = [[layer.count(t) for layer in layers] for t in THRESHOLD_GRID]
    curve = Curve(THRESHOLD_GRID, [sum(c) / len(c) for c in counts], list(map(min, counts)), list(map(max, counts)))
    marks = palette.marks(["intruders"])
    x_title, y_title = "threshold on the largest |cos|", "intruders per weight"
    figure = lines({"intruders": curve}, marks, x_title=x_title, y_title=y_title, span=(0, 1))
    baselines = [layer.baseline for layer in layers]
    mark_range(figure, min(baselines), max(baselines), "a random direction")
    figure.update_layout(showlegend=False)
    alt_text = f"{intruders.count()} of {intruders.vectors} vectors are intruders below {intruders.threshold:g}."
    caption = f"Mean over weights; the band goes from the weight with fewest to that with most. {alt_text}"
    return Panel("curve-figure", "Intruders against the threshold", caption, alt_text, figure)


def _cosine_panel(found: Inspection) -> Panel:
    layers = found.intruders.layers
    shown = min(20, max(len(layer.cosines) for layer in layers.values()))
    values = [[*layer.cosines[:shown], *[None] * (shown - len(layer.cosines))] for layer in layers.values()]
    places = [str(i + 1) for i in range(shown)]
    figure = layer_heat_map(short_layers(list(layers)), places, values, unit="largest |cos|")
    figure.update_xaxes(title_text="place of the singular vector of W0 + dW", tickangle=0)
    caption = "Largest |cos| with W0's left singular vectors: pale ones are new directions."
    alt_text = "Largest |cos| of each top singular vector with all of W0's, layer by layer."
    return Panel("cosines-figure", "Each vector's largest |cos|", caption, alt_text, figure)


def _number(value: float | None, factor: float = 1.0) -> str:
    return MISSING if value is None else f"{factor * value:.2f}"
