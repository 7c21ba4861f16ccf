"""The paper's question, asked of this comparison: do sharpness and intruders tell which method has the larger gap?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunewise.advise.rank_correlation import FEWEST, RankCorrelation, rank_correlation
from tunewise.advise.statistics import holm
from tunewise.measures.intruders.section import common_layers, counts
from tunewise.measures.spectrum.section import layer_mean
from tunewise.number_format import MISSING
from tunewise.pages.figures import Dots, dots
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

LEVEL = 0.05


@dataclass(frozen=True)
class Predictor:
    """A number of a run that may go with its gap. `of`: (the measure's values, layers that all runs changed) -> it.
    `title` may name values of the measure in braces."""

    key: str
    title: str
    measure: str
    of: Callable[[Mapping[str, Any], list[str]], float | None]


PREDICTORS: tuple[Predictor, ...] = (
    Predictor("sharpness", "sharpness", "sharpness", lambda v, _: v.get("sharpness")),
    Predictor(
        "epsilon-sharpness", "ε-sharpness", "sharpness", lambda v, _: (v.get("epsilon_sharpness") or {}).get("value")
    ),
    Predictor(
        "intruders",
        "intruders per weight, below {threshold:g}",
        "intruders",
        lambda v, layers: counts(v, layers, float(v["threshold"])),
    ),
    Predictor(
        "effective-rank", "effective rank of dW", "spectrum", lambda v, layers: layer_mean(v, layers, "effective_rank")
    ),
    Predictor(
        "relative-norm", "relative norm of dW", "spectrum", lambda v, layers: layer_mean(v, layers, "relative_norm")
    ),
    Predictor("drift", "drift of the features", "forgetting", lambda v, _: v.get("drift")),
)
"""In the order of the table. A new one is a row here."""


@dataclass(frozen=True)
class _Found:
    predictor: Predictor
    title: str
    runs: dict[str, list[tuple[int, float, float]]]
    """Method -> (seed, number, gap) of its runs."""
    correlation: RankCorrelation | None


def section(data: ReportData) -> Section | None:
    """A sentence, a table of rank correlations over methods, a figure for each number; None where fewer than two
    methods have a gap and one of the numbers."""
    found = [f for predictor in PREDICTORS if (f := _collect(data, predictor)) is not None]
    if not found:
        return None
    tested = [f for f in found if f.correlation is not None]
    corrected = dict(zip([f.predictor.key for f in tested], holm([f.correlation.p for f in tested if f.correlation])))
    words = [
        "If a number of the trained weights predicted the generalization gap, methods would come in one order by "
        "both. Spearman's rank correlation over the methods (each by its means over seeds) says how far they do; p "
        "is exact, from all orders of the methods, and Holm-corrected over the numbers tried here.",
        _verdict(found, corrected),
    ]
    rows = [
        [
            f.title,
            str(len(f.runs)),
            *_cells(f.correlation),
            f"{corrected[f.predictor.key]:.3f}" if f.correlation else MISSING,
            _answer(f.correlation, corrected.get(f.predictor.key)),
        ]
        for f in found
    ]
    grid = Grid(
        [
            "number",
            "methods",
            "rank correlation with the gap",
            "95 % interval",
            "p, corrected",
            "predicts the gap here",
        ],
        rows,
    )
    panels = [_panel(data, f) for f in found]
    return Section("predictors", "What predicts the gap?", words, panels[:2], [grid], panels[2:], "The other numbers")


def _collect(data: ReportData, predictor: Predictor) -> _Found | None:
    known = data.values(predictor.measure)
    with_layers = [v for _, v in known if isinstance(v.get("layers"), dict)]
    layers = common_layers(with_layers) if with_layers and len(with_layers) == len(known) else []
    counted = {s.label: s.gap_by_seed for s in data.summaries}
    runs: dict[str, list[tuple[int, float, float]]] = {}
    for record, values in known:
        label, seed = record.spec.method.label, record.spec.seed
        number, gap = predictor.of(values, layers), counted.get(label, {}).get(seed)
        if number is not None and gap is not None:
            runs.setdefault(label, []).append((seed, float(number), gap))
    if len(runs) < 2:
        return None
    numbers = [sum(n for _, n, _ in r) / len(r) for r in runs.values()]
    gaps = [sum(g for _, _, g in r) / len(r) for r in runs.values()]
    return _Found(predictor, predictor.title.format_map(known[0][1]), runs, rank_correlation(numbers, gaps))


def _verdict(found: list[_Found], corrected: Mapping[str, float]) -> str:
    tested = [f for f in found if f.correlation is not None]
    most = max(len(f.runs) for f in found)
    if not tested:
        if most < FEWEST:
            return f"{most} methods are too few to say: at least {FEWEST} are needed, and seven or more to see much."
        return "None of the numbers differs between the methods."
    shown = [f for f in tested if corrected[f.predictor.key] < LEVEL]
    if shown:
        said = [
            f"{f.title} ({'larger' if f.correlation and f.correlation.rho > 0 else 'smaller'} where the gap is larger)"
            for f in shown
        ]
        return f"Shown to go with the gap in this comparison: {', '.join(said)}. That is no proof of a cause."
    few = " With so few methods only an almost perfect order could have been told from chance." if most < 7 else ""
    return f"None is shown to go with the gap in this comparison of {most} methods.{few}"


def _cells(found: RankCorrelation | None) -> list[str]:
    if found is None:
        return [MISSING, MISSING]
    low, rho, high = (f"{v:+.2f}".replace("-", "−") for v in (found.low, found.rho, found.high))
    return [rho, f"{low} to {high}"]


def _answer(found: RankCorrelation | None, p: float | None) -> str:
    if found is None or p is None:
        return "can't be said"
    return "yes" if p < LEVEL else "not shown"


def _panel(data: ReportData, found: _Found) -> Panel:
    points = [
        Dots(label, [n for _, n, _ in runs], [g for _, _, g in runs], [s for s, _, _ in runs])
        for label, runs in found.runs.items()
    ]
    title = found.title
    figure = dots(points, data.marks, across=title, up="gap, nats")
    rho = "" if found.correlation is None else f" Rank correlation over methods {found.correlation.rho:+.2f}."
    words = f"Gap against {title}.{rho}"
    caption = "Large marks: means over seeds. Small ones: the runs."
    return Panel(f"{found.predictor.key}-gap-figure", f"Gap against {title}", caption, words, figure)
