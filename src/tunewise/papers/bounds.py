"""Table 1, computed: the information-theoretic bound of every method (Theorem 7) on one model and data set."""

from __future__ import annotations

import math

from tunewise.models.layers import find_targets
from tunewise.models.load import meta_model
from tunewise.papers.counts import head_of
from tunewise.papers.presets import RANK, Preset, restarts
from tunewise.papers.printed import METHODS, bound_formulas
from tunewise.papers.sheet import Sheet, SheetColumn, label, number
from tunewise.spec import ModelSpec
from tunewise.theory import information_bound, trained_parameters


def sheet(preset: Preset, samples: int) -> Sheet:
    """The bound with sigma 1 and 32 bits a parameter for N = `samples`, and the value of the printed formula."""
    shapes, links = layer_shapes(preset), links_of(preset)
    lora = float(information_bound(trained_parameters("lora", shapes, RANK), samples))
    rows = []
    for printed, formula, note in bound_formulas():
        ours = trained_parameters(METHODS[printed], shapes, RANK, links if "k" in formula else None)
        count, theirs = float(ours), by_formula(formula, shapes, RANK, links)
        bound = float(information_bound(ours, samples))
        notes = [note] if note else []
        if not math.isclose(count, theirs):
            notes.append("it counts a layer beyond its m n entries" if theirs > count else f"it counts {theirs:,.0f}")
        values = [number(count, ",.0f"), number(theirs, ",.0f"), number(bound, ".3g"), number(bound / lora, ".3f")]
        rows.append([label(printed), label(formula), *values, label("; ".join(notes))])
    columns = [
        SheetColumn("method", "method", right=False),
        SheetColumn("formula", "printed p of a layer", right=False),
        SheetColumn("parameters", "p"),
        SheetColumn("parameters_by_printed_formula", "printed p"),
        SheetColumn("bound", "bound"),
        SheetColumn("over_lora", "over LoRA's"),
        SheetColumn("note", "difference of the printed table", right=False),
    ]
    legend = [
        f"{' on '.join(preset.printed)}: {len(shapes)} layers (query and value), rank {RANK}, "
        f"{links} links, N = {samples:,}, sigma = 1, 32 bits a parameter. n: outputs, m: inputs, k: links.",
        "Each layer's p is capped at m n here: a matrix has no more entries.",
        "The bound is on the expected gap, and far above any loss: it orders the methods and does not predict a gap.",
    ]
    return Sheet("Table 1 of arXiv 2606.13767: information-theoretic bounds, computed", columns, rows, legend)


def layer_shapes(preset: Preset) -> list[tuple[int, int]]:
    """(out, in) of every query and value projection."""
    model = meta_model(ModelSpec(path=str(preset.model.config)), head_of(preset))
    return [(part.rows, t.in_features) for t in find_targets(model, "qv") for part in t.parts]


def links_of(preset: Preset) -> int:
    """Links of the preset's chains."""
    chain = restarts(preset)
    return chain.get("links") or math.ceil(preset.settings.epochs / chain["restart_every"])


def by_formula(formula: str, shapes: list[tuple[int, int]], rank: int, links: int) -> float:
    """The printed formula over all layers; its letters are n (outputs), m (inputs), r and k."""
    return float(
        sum(
            math.prod({"n": n, "m": m, "r": rank, "k": links, "(m+n)": m + n}[factor] for factor in formula.split("*"))
            for n, m in shapes
        )
    )
