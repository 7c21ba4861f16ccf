"""Where dW grows: its angles to the singular spaces of the first full gradient, along the runs, beside chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tunewise.measures.along_runs import Found, by_method, curves_of, middle
from tunewise.pages import figures, palette
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

_SIDES = {"left": ("left (output) space", "outputs"), "right": ("right (input) space", "inputs")}


def section(data: ReportData) -> Section | None:
    """Angles of every method; None where nothing was measured."""
    found = data.values("alignment")
    if not found:
        return None
    first = found[0][1]
    words = [
        f"A full gradient was taken once, at the pretrained weights, over {first['samples']} training examples: how "
        "near does each method's dW come to its top singular spaces? 0° is the same space, 90° nothing in common. A "
        "dotted line is chance: random directions in so many dimensions. Each figure is the median over layers of the "
        "mean principal angle.",
        *_answers(found),
    ]
    panels = [panel for side in _SIDES if (panel := _curves(side, "mean", found, data))]
    folded = [panel for side in _SIDES if (panel := _curves(side, "largest", found, data))]
    notes = data.missing("alignment")
    if not panels:
        notes = [*notes, "The runs kept no trajectory, so only their ends are shown; --trajectory 20 keeps one."]
    return Section(
        "alignment",
        "Alignment with the first gradient",
        words,
        panels,
        [_table(found)],
        folded=folded,
        folded_title="The largest angle instead of the mean",
        notes=notes,
    )


def _answers(found: Found) -> list[str]:
    """Per method, in how many layers dW is nearer to the gradient's spaces than 95 % of random ones would be."""
    said = []
    for method in dict.fromkeys(r.spec.method.label for r, _ in found):
        own = [v for r, v in found if r.spec.method.label == method]
        parts = []
        for side, (_, name) in _SIDES.items():
            near = total = 0
            for values in own:
                for layer, angle in zip(values["layers"], values["selected"][f"{side}_mean"]):
                    total += angle is not None
                    near += angle is not None and angle < layer["chance"][side]["low"]
            if total:
                parts.append(f"{near} of {total} on the side of the {name}")
        if parts:
            said.append(f"{method}: {', '.join(parts)}")
    if not said:
        return []
    return [f"Layers (over seeds) that end nearer to the gradient than chance would bring them: {'; '.join(said)}."]


def _curves(side: str, what: str, found: Found, data: ReportData) -> Panel | None:
    drawn = curves_of(found, lambda point: middle(point[f"{side}_{what}"]))
    if not drawn:
        return None
    chance = _chance(found, side, what)
    name, _ = _SIDES[side]
    figure = figures.learning_curves(drawn, data.marks, what=f"{what} angle, degrees")
    top = max(92.0, chance + 2)
    figure.update_yaxes(range=[0, top], tickvals=[0, 15, 30, 45, 60, 75, 90], tickformat="~g")
    figure.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref="paper",
        y0=chance,
        y1=chance,
        layer="below",
        line={"color": palette.MUTED, "width": 1.5, "dash": "dot"},
        label={
            "text": "chance",
            "textposition": "start",
            "yanchor": "top",
            "font": {"size": 12, "color": palette.MUTED},
        },
    )
    ends = "; ".join(f"{method} {curve.mean[-1]:.1f}" for method, curve in drawn.items())
    words = f"{what} angle of the {name} to the first gradient's, degrees, over epochs; by chance {chance:.1f}; "
    return Panel(
        f"alignment-{side}-{what}-figure",
        f"{name[0].upper()}{name[1:]}, {what} angle",
        "",
        f"{words}at the end: {ends}.",
        figure,
        filtered=True,
    )


def _chance(found: Found, side: str, what: str) -> float:
    """The median over layers of what chance gives."""
    return statistics.median(layer["chance"][side][what] for _, values in found for layer in values["layers"])


def _table(found: Found) -> Grid:
    rows = []
    keys = [(side, what) for side in _SIDES for what in ("mean", "largest")]
    made = {key: by_method(found, lambda v, key=key: middle(v["selected"]["_".join(key)])) for key in keys}  # type: ignore[misc]
    for method in dict.fromkeys(r.spec.method.label for r, _ in found):
        rows.append([method, *(_degrees(made[key].get(method, {})) for key in keys)])
    rows.append(["by chance", *(f"{_chance(found, *key):.1f}" for key in keys)])
    return Grid(
        ["method", "left, mean", "left, largest", "right, mean", "right, largest"],
        rows,
        "Angles of the selected epoch's dW to the first gradient's top spaces, degrees: median over layers, mean over "
        "seeds (lowest to highest seed)",
    )


def _degrees(by_seed: Mapping[int, float]) -> str:
    values: Sequence[Any] = list(by_seed.values())
    if not values:
        return "–"
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"
