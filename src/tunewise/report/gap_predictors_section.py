"""The question of the paper: do sharpness and intruders predict which method has the larger gap?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from tunewise.advise.rank_correlation import FEWEST, RankCorrelation, rank_correlation
from tunewise.advise.statistics import holm
from tunewise.measures.base import MeasureResult
from tunewise.measures.forgetting.compute import ForgettingResult
from tunewise.measures.intruders.compute import IntrudersResult
from tunewise.measures.intruders.section import intruders_per_weight
from tunewise.measures.section_parts import common_layers
from tunewise.measures.sharpness.compute import SharpnessResult
from tunewise.measures.spectrum.compute import SpectrumResult
from tunewise.measures.spectrum.section import layer_mean
from tunewise.number_format import MISSING
from tunewise.pages.figures import Dots, dots
from tunewise.pages.section import Panel, Section, Table
from tunewise.report.data import ReportData
from tunewise.store.records import RunRecord

Result = TypeVar("Result", bound=MeasureResult)
Runs = Sequence[tuple[RunRecord, Result]]
LEVEL = 0.05


@dataclass(frozen=True)
class Predictor:
    """A number of a run that may predict its gap: `values` of (label, seed). `title` may have a `{threshold}`."""

    key: str
    title: str
    values: dict[tuple[str, int], float]


def predictors(data: ReportData) -> list[Predictor]:
    """Numbers of the measures that were computed, in the order of the table."""
    found: list[Predictor] = []

    def add(key: str, title: str, runs: Runs[Result], value: Callable[[Result], float | None]) -> None:
        values = {(r.spec.method.label, r.spec.seed): v for r, result in runs if (v := value(result)) is not None}
        found.append(Predictor(key, title, values))

    sharp = _runs(data, SharpnessResult)
    add("sharpness", "sharpness", sharp, lambda result: result.sharpness.value)
    add("epsilon-sharpness", "ε-sharpness", sharp, lambda result: result.epsilon_sharpness.value)
    intruders = _runs(data, IntrudersResult)
    if intruders:
        shared = common_layers([result.layers for _, result in intruders])
        threshold = intruders[0][1].threshold
        title = f"intruders per weight, below {threshold:g}"
        add("intruders", title, intruders, lambda result: intruders_per_weight(result, shared, threshold))
    spectra = _runs(data, SpectrumResult)
    layers = common_layers([result.layers for _, result in spectra]) if spectra else []
    rank = "effective rank of dW"
    add("effective-rank", rank, spectra, lambda result: layer_mean(result, layers, lambda x: x.effective_rank))
    norm = "relative norm of dW"
    add("relative-norm", norm, spectra, lambda result: layer_mean(result, layers, lambda x: x.relative_norm))
    add("drift", "drift of the features", _runs(data, ForgettingResult), lambda result: result.drift)
    return found


def _runs(data: ReportData, kind: type[Result]) -> Runs[Result]:
    """Runs with a result of this class."""
    for measure in data.measures:
        section_data = data.section_data(measure) if measure.result is kind else None
        if section_data is not None:
            return cast("Runs[Result]", section_data.runs)
    return []


@dataclass(frozen=True)
class _Found:
    predictor: Predictor
    runs: dict[str, list[tuple[int, float, float]]]
    """Method -> (seed, number, gap) of its runs."""
    correlation: RankCorrelation | None

    @property
    def title(self) -> str:
        return self.predictor.title


def section(data: ReportData) -> Section | None:
    """None where fewer than two methods have a gap and one of the numbers."""
    found = [f for predictor in predictors(data) if (f := _collect(data, predictor)) is not None]
    if not found:
        return None
    tested = [f for f in found if f.correlation is not None]
    corrected = dict(zip([f.predictor.key for f in tested], holm([f.correlation.p for f in tested if f.correlation])))
    words = [
        "If a number of the trained weights predicted the generalization gap, it would order the methods as the gap "
        "does. Spearman's rank correlation over the methods (means over seeds) measures how far it does; p is exact, "
        "from all permutations of the methods, and Holm-corrected over the numbers tried here.",
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
    table = Table(
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
    return Section("predictors", "What predicts the gap?", words, panels[:2], [table], panels[2:], "The other numbers")


def _collect(data: ReportData, predictor: Predictor) -> _Found | None:
    gaps = {s.label: s.gap_by_seed for s in data.summaries}
    runs: dict[str, list[tuple[int, float, float]]] = {}
    for (label, seed), number in predictor.values.items():
        gap = gaps.get(label, {}).get(seed)
        if gap is not None:
            runs.setdefault(label, []).append((seed, number, gap))
    if len(runs) < 2:
        return None
    mean_numbers = [sum(n for _, n, _ in r) / len(r) for r in runs.values()]
    mean_gaps = [sum(g for _, _, g in r) / len(r) for r in runs.values()]
    return _Found(predictor, runs, rank_correlation(mean_numbers, mean_gaps))


def _verdict(found: list[_Found], corrected: Mapping[str, float]) -> str:
    tested = [f for f in found if f.correlation is not None]
    most = max(len(f.runs) for f in found)
    if not tested:
        if most < FEWEST:
            return f"{most} methods are too few to say: at least {FEWEST} are needed, and seven or more to see much."
        return "None of the numbers differs between the methods."
    shown = [f for f in tested if corrected[f.predictor.key] < LEVEL]
    if shown:
        parts = [
            f"{f.title} ({'larger' if f.correlation and f.correlation.rho > 0 else 'smaller'} where the gap is larger)"
            for f in shown
        ]
        return f"Correlated with the gap in this comparison: {', '.join(parts)}. That does not prove a cause."
    few = " With so few methods only an almost perfect order differs from chance." if most < 7 else ""
    return f"None is shown to be correlated with the gap in this comparison of {most} methods.{few}"


def _cells(found: RankCorrelation | None) -> list[str]:
    if found is None:
        return [MISSING, MISSING]
    low, rho, high = (f"{v:+.2f}".replace("-", "−") for v in (found.low, found.rho, found.high))
    return [rho, f"{low} to {high}"]


def _answer(found: RankCorrelation | None, p: float | None) -> str:
    if found is None or p is None:
        return "not tested"
    return "yes" if p < LEVEL else "not shown"


def _panel(data: ReportData, found: _Found) -> Panel:
    points = [
        Dots(label, [n for _, n, _ in runs], [g for _, _, g in runs], [s for s, _, _ in runs])
        for label, runs in found.runs.items()
    ]
    title = found.title
    figure = dots(points, data.marks, x_title=title, y_title="gap, nats")
    rho = "" if found.correlation is None else f" Rank correlation over methods {found.correlation.rho:+.2f}."
    words = f"Gap against {title}.{rho}"
    caption = "Large marks: means over seeds. Small ones: the runs."
    return Panel(f"{found.predictor.key}-gap-figure", f"Gap against {title}", caption, words, figure)
