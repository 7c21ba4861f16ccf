"""What `tunewise inspect` found: as rows of tables, for the terminal and the page alike, and as an offline page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewise import number_format as numbers
from tunewise.number_format import MISSING
from tunewise.pages import page as pages
from tunewise.pages import palette
from tunewise.pages.figures import Line, heat, lines, short_layers
from tunewise.pages.section import Grid, Panel, Section

Found = Mapping[str, Any]
"""`Inspection.as_data()`."""
Rows = tuple[list[str], list[list[str]]]
"""Titles of the columns, and the rows; the first column is the row's name."""

_GRID = tuple(i / 100 for i in range(1, 101))
_DRAWN = 16


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


def layer_rows(found: Found, *, narrow: bool = False) -> Rows:
    """One row a layer, and one for all together; `narrow`: titles for a terminal, which `total_lines` explains."""
    spectra, intruders = found["spectrum"], found["intruders"]
    columns = list(_SHORT if narrow else _LONG)
    rows = []
    for name, short in zip(spectra["layers"], short_layers(list(spectra["layers"]))):
        layer, top = spectra["layers"][name], intruders["layers"][name]
        rows.append(
            [
                short,
                "×".join(map(str, layer["shape"])),
                str(layer["rank"]),
                f"{layer['effective_rank']:.2f}",
                f"{layer['stable_rank']:.2f}",
                _percent(layer["relative_norm"]),
                _over_chance(layer, "energy_left", 0),
                _over_chance(layer, "energy_right", 1),
                f"{top['count']} / {len(top['cosines'])}",
                f"{min(top['cosines']):.3f}",
            ]
        )
    lowest = min(min(layer["cosines"]) for layer in intruders["layers"].values())
    rows.append(
        [
            "all",
            str(len(rows)),
            "",
            f"{spectra['effective_rank']:.2f}",
            f"{spectra['stable_rank']:.2f}",
            _percent(spectra["relative_norm"]),
            "",
            "",
            f"{intruders['count']} / {intruders['vectors']}",
            f"{lowest:.3f}",
        ]
    )
    return columns, rows


def total_lines(found: Found) -> list[str]:
    """What the columns of a terminal mean, and what was left out."""
    lines = [
        "eff., stable: effective and stable rank of dW; norm %: of W0's Frobenius norm; out ×, in ×: energy of dW in "
        f"W0's top {_space(found)} output and input directions, over a random dW's.",
        f"intruders: of {_vectors(found)} left singular vectors of W0 + dW, those whose largest |cos| with W0's is "
        f"below {found['intruders']['threshold']:g}. A random direction has about {_chance(found)}.",
    ]
    return [*lines, *_left_out(found)]


def _space(found: Found) -> str:
    spaces = sorted({layer["top"] for layer in found["spectrum"]["layers"].values()})
    return f"{spaces[0]}" if len(spaces) == 1 else f"{spaces[0]} to {spaces[-1]}"


def _vectors(found: Found) -> str:
    top = found["intruders"]["top_k"]
    return "all" if top == "all" else f"the top {top}"


def _chance(found: Found) -> str:
    baselines = [layer["baseline"] for layer in found["intruders"]["layers"].values()]
    low, high = min(baselines), max(baselines)
    return f"{low:.3f}" + (f" to {high:.3f}" if high - low > 5e-4 else "")


def _left_out(found: Found) -> list[str]:
    names = found["left_out"]
    if not names:
        return []
    return [f"Changed too, and no linear layer, so left out: {', '.join(names[:3])}{', ...' if names[3:] else ''}."]


def threshold_rows(found: Found) -> Rows:
    """Intruders in all layers at every tenth."""
    at = [t / 10 for t in range(1, 11)]
    layers = found["intruders"]["layers"].values()
    counts = [sum(c < t for layer in layers for c in layer["cosines"]) for t in at]
    return ["below", *(f"{t:g}" for t in at)], [["vectors", *(f"{count:,}" for count in counts)]]


def scaled_rows(found: Found) -> Rows:
    """Intruders left and the loss at each factor; no rows where nothing was scaled."""
    scaled = found["scaled_intruders"]
    metrics = list(dict.fromkeys(key for s in scaled for key in s["metrics"]))
    measured = any(s["loss"] is not None for s in scaled)
    columns = ["factor", "intruders left"] + (
        ["loss, nats", *(m.replace("_", " ") for m in metrics)] if measured else []
    )
    rows = [
        [
            f"{s['factor']:g}",
            str(s["count"]),
            *([numbers.nats(s["loss"]), *(f"{s['metrics'][m]:.4f}" for m in metrics)] if measured else []),
        ]
        for s in scaled
    ]
    return columns, rows


def sections(found: Found) -> list[Section]:
    """The page's sections: spectra, intruders, and the causal check where it was made."""
    columns, rows = layer_rows(found)
    made = [
        Section(
            "spectrum",
            "Spectra of dW",
            [
                "The update dW of each weight, taken apart into directions. Effective rank: how many of them count (exp"
                " of the entropy of the singular values). Stable rank: ||dW||_F² / ||dW||₂². Energy: how much of dW "
                f"lies in W0's top {_space(found)} directions, in units of what a random update would have there.",
                *_left_out(found),
            ],
            [_values_panel(found), _norm_panel(found)],
            [Grid(columns, rows)],
        ),
        Section(
            "intruders",
            "Intruder dimensions",
            [
                f"A left singular vector of the fine-tuned weight, one of {_vectors(found)}, is an intruder where its "
                "largest |cos| with all left singular vectors of the pretrained weight is below a threshold: a "
                "direction that counts now and was not there before (arXiv 2410.21228). A random direction has about "
                f"{_chance(found)}."
            ],
            [_curve_panel(found)],
            [Grid(*threshold_rows(found))],
            [_cosine_panel(found)],
            "Vector by vector",
            wide=True,
        ),
    ]
    columns, rows = scaled_rows(found)
    if rows:
        on = f" Loss and metrics on {found['scaled_on']}." if found["scaled_on"] else ""
        said = (
            "The intruders' singular values times a factor: 1 is the model as it is, 0 takes them out. If the loss "
            f"moves with the factor, they carry something.{on}"
        )
        made.append(Section("scaled", "Intruders scaled", [said], grids=[Grid(columns, rows)]))
    return made


def write_page(found: Found, path: Path) -> None:
    """The offline page, whole or not at all. Raises `StoreError` where it can't be written."""
    page = pages.render_page(
        "sections.html.jinja",
        title=f"Inside {found['of']}",
        subject=f"Base model {found['base']}; {found['family']}; {len(found['spectrum']['layers'])} weights",
        sections=sections(found),
        took=numbers.seconds(found["seconds"]),
    )
    pages.write_page(path, page)


def _values_panel(found: Found) -> Panel:
    """Over layers: the median's place is taken by the geometric mean, as in the report of a comparison."""
    spectra = [layer["values"] for layer in found["spectrum"]["layers"].values() if layer["values"]]
    length = min(map(len, spectra), default=0)
    at = list(zip(*(s[:length] for s in spectra)))
    line = Line(
        "dW",
        list(range(1, length + 1)),
        [math.exp(math.fsum(map(math.log, v)) / len(v)) for v in at],
        [min(v) for v in at],
        [max(v) for v in at],
    )
    marks = palette.marks(["dW"])
    figure = lines(
        [line] if at else [],
        marks,
        across="place of the singular value",
        up="singular value of dW",
        log_y=True,
        markers=length <= _DRAWN,
    )
    figure.update_layout(showlegend=False)
    caption = "Geometric mean over layers; the band goes from the smallest layer to the largest."
    words = f"Singular values of dW: {line.mean[0]:.3g} to {line.mean[-1]:.3g}." if at else "dW is zero."
    return Panel("values-figure", "Singular values of dW", caption, words, figure)


def _norm_panel(found: Found) -> Panel:
    layers = found["spectrum"]["layers"]
    known = [layer["relative_norm"] for layer in layers.values()]
    rows = ["norm, % of W0's", "effective rank", "stable rank"]
    values = [
        [None if v is None else 100 * v for v in known],
        [layer["effective_rank"] for layer in layers.values()],
        [layer["stable_rank"] for layer in layers.values()],
    ]
    scaled = [[None if v is None else v / (max((x for x in row if x), default=1.0)) for v in row] for row in values]
    figure = heat(rows, short_layers(list(layers)), scaled, unit="", shown=values)
    words = "Norm, effective and stable rank of dW, layer by layer; the numbers are in the table."
    return Panel("layers-figure", "Layer by layer", "Colour: from nothing to the row's largest.", words, figure)


def _curve_panel(found: Found) -> Panel:
    layers = found["intruders"]["layers"].values()
    counts = [[sum(c < t for c in layer["cosines"]) for t in _GRID] for layer in layers]
    at = list(zip(*counts))
    line = Line("intruders", _GRID, [sum(c) / len(c) for c in at], [min(c) for c in at], [max(c) for c in at])
    baselines = [layer["baseline"] for layer in layers]
    figure = lines(
        [line],
        palette.marks(["intruders"]),
        across="threshold on the largest |cos|",
        up="intruders per weight",
        span=(0, 1),
        upright=(min(baselines), max(baselines)),
        upright_name="a random direction",
    )
    figure.update_layout(showlegend=False)
    threshold = found["intruders"]["threshold"]
    count, vectors = found["intruders"]["count"], found["intruders"]["vectors"]
    words = f"{count} of {vectors} vectors are intruders below {threshold:g}."
    caption = f"Mean over weights; the band goes from the weight with fewest to that with most. {words}"
    return Panel("curve-figure", "Intruders against the threshold", caption, words, figure)


def _cosine_panel(found: Found) -> Panel:
    layers = found["intruders"]["layers"]
    shown = min(20, max(len(layer["cosines"]) for layer in layers.values()))
    values = [[*layer["cosines"][:shown], *[None] * (shown - len(layer["cosines"]))] for layer in layers.values()]
    figure = heat(short_layers(list(layers)), [str(i + 1) for i in range(shown)], values, unit="largest |cos|")
    figure.update_xaxes(title_text="place of the singular vector of W0 + dW", tickangle=0)
    caption = "Largest |cos| with W0's left singular vectors: pale ones are new directions."
    words = "Largest |cos| of each top singular vector with all of W0's, layer by layer."
    return Panel("cosines-figure", "Each vector's largest |cos|", caption, words, figure)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.2f}"


def _over_chance(layer: Mapping[str, Any], key: str, side: int) -> str:
    return MISSING if layer[key] is None else f"{layer[key] / (layer['top'] / layer['shape'][side]):.2f}"
