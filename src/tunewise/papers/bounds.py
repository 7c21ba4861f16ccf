"""Table 1, computed: the information-theoretic bound of every method (Theorem 7 there) on one model and data set."""

from __future__ import annotations

import math

from tunewise.papers.counts import head_of
from tunewise.papers.presets import RANK, Pair, restarts
from tunewise.papers.printed import METHODS, bounds
from tunewise.papers.sheet import Column, Entry, Sheet, name
from tunewise.theory import information_bound, trained_parameters

SIGMA, BITS = 1.0, 32.0


def sheet(pair: Pair, samples: int) -> Sheet:
    """The bound sqrt(2 sigma^2 q p ln 2 / N) with sigma 1 and 32 bits a parameter, and the printed formula's value.

    `samples` is N. p is counted over the adapted layers by `theory`, and from the printed formula besides.
    """
    shapes = layer_shapes(pair)
    links = links_of(pair)
    columns = [
        Column("method", "method", right=False),
        Column("formula", "printed p of a layer", right=False),
        Column("parameters", "p"),
        Column("parameters_by_printed_formula", "p by the print"),
        Column("bound", "bound"),
        Column("over_lora", "over LoRA's"),
        Column("note", "the print differs", right=False),
    ]
    lora = float(information_bound(trained_parameters("lora", shapes, RANK), samples=samples, bits=BITS, sigma=SIGMA))
    rows = []
    for printed, formula, note in bounds():
        method = METHODS[printed]
        chained = links if "k" in formula else None
        ours = trained_parameters(method, shapes, RANK, chained)
        theirs = by_formula(formula, shapes, RANK, links)
        bound = information_bound(ours, samples=samples, bits=BITS, sigma=SIGMA)
        count = float(ours)
        differs = note if math.isclose(count, theirs) else "; ".join(filter(None, [note, _capped(count, theirs)]))
        rows.append(
            [
                name(printed),
                name(formula),
                Entry(f"{count:,.0f}", count),
                Entry(f"{theirs:,.0f}", theirs),
                Entry(f"{float(bound):.3g}", float(bound)),
                Entry(f"{float(bound) / lora:.3f}", float(bound) / lora),
                name(differs),
            ]
        )
    legend = [
        f"{pair.model.printed} on {pair.data.printed}: {len(shapes)} layers (query and value), rank {RANK}, "
        f"{links} links, N = {samples:,}, sigma = 1, 32 bits a parameter. n: outputs, m: inputs, k: links.",
        "Each layer's p is capped at m n here: a matrix has no more entries.",
        "On the expected gap, and far above any loss: it orders the methods and says nothing of the size of a gap.",
    ]
    title = "Table 1 of arXiv 2606.13767: information-theoretic bounds, computed"
    return Sheet(title, columns, rows, legend)


def layer_shapes(pair: Pair) -> list[tuple[int, int]]:
    """(out, in) of every query and value projection."""
    from tunewise.models.layers import find_targets
    from tunewise.models.load import meta_model
    from tunewise.spec import ModelSpec

    model = meta_model(ModelSpec(path=str(pair.model.config)), head_of(pair))
    return [(stop - start, t.in_features) for t in find_targets(model, "qv") for start, stop in t.parts]


def links_of(pair: Pair) -> int:
    """Links of the preset's chains."""
    said = restarts(pair)
    return said.get("links") or math.ceil(pair.settings.epochs / said["restart_every"])


def by_formula(formula: str, shapes: list[tuple[int, int]], rank: int, links: int) -> float:
    """The printed formula over all layers; its letters are n (outputs), m (inputs), r and k."""
    total = 0.0
    for n, m in shapes:
        product = 1.0
        for factor in formula.split("*"):
            product *= {"n": n, "m": m, "r": rank, "k": links, "(m+n)": m + n}[factor]
        total += product
    return total


def _capped(ours: float, theirs: float) -> str:
    return "it counts a layer beyond its m n entries" if theirs > ours else f"it counts {theirs:,.0f}"
