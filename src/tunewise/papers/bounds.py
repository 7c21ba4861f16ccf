"""Table 1, computed: the information-theoretic bound of every method (Theorem 7) on one model and data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunewise.models.layers import find_targets
from tunewise.models.load import meta_model
from tunewise.papers.counts import head_of
from tunewise.papers.presets import RANK, Preset, get_preset, restarts
from tunewise.papers.printed import bound_formulas, catalog_name
from tunewise.papers.sheet import Sheet, SheetColumn
from tunewise.spec import ModelSpec
from tunewise.theory import information_bound, trained_parameters


@dataclass(frozen=True, slots=True)
class BoundLine:
    """A method's parameters, counted and by the printed formula, and its bound; `over_lora` is the ratio to LoRA's."""

    method: str
    formula: str
    parameters: float
    printed: float
    bound: float
    over_lora: float
    note: str


_COLUMNS: list[SheetColumn[BoundLine]] = [
    SheetColumn("method", "method", lambda line: line.method, right=False),
    SheetColumn("formula", "printed p of a layer", lambda line: line.formula, right=False),
    SheetColumn("parameters", "p", lambda line: line.parameters, ",.0f"),
    SheetColumn("parameters_by_printed_formula", "printed p", lambda line: line.printed, ",.0f"),
    SheetColumn("bound", "bound", lambda line: line.bound, ".3g"),
    SheetColumn("over_lora", "over LoRA's", lambda line: line.over_lora, ".3f"),
    SheetColumn("note", "difference of the printed table", lambda line: line.note, right=False),
]


def sheet(key: str = "vit-base/cifar10", samples: int = 50_000) -> Sheet:
    """The bound with sigma 1 and 32 bits a parameter for N = `samples`, and the value of the printed formula."""
    preset = get_preset(key)
    shapes, links = layer_shapes(preset), links_of(preset)
    lora = float(information_bound(trained_parameters("lora", shapes, RANK), samples))
    lines = []
    for method, formula, note in bound_formulas():
        ours = trained_parameters(catalog_name(method), shapes, RANK, links if "k" in formula else None)
        count, theirs = float(ours), by_formula(formula, shapes, RANK, links)
        bound = float(information_bound(ours, samples))
        notes = [note] if note else []
        if not math.isclose(count, theirs):
            notes.append("it counts a layer beyond its m n entries" if theirs > count else f"it counts {theirs:,.0f}")
        lines.append(BoundLine(method, formula, count, theirs, bound, bound / lora, "; ".join(notes)))
    legend = [
        f"{' on '.join(preset.printed)}: {len(shapes)} layers (query and value), rank {RANK}, "
        f"{links} links, N = {samples:,}, sigma = 1, 32 bits a parameter. n: outputs, m: inputs, k: links.",
        "Each layer's p is capped at m n here: a matrix has no more entries.",
        "The bound is on the expected gap, and far above any loss: it orders the methods and does not predict a gap.",
    ]
    return Sheet("Table 1 of arXiv 2606.13767: information-theoretic bounds, computed", _COLUMNS, lines, legend)


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
