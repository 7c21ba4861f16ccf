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
    """A number of a run that may predict its gap; `correlation`: of its means over seeds with those of the gap."""

    key: str
    title: str
    runs: dict[str, list[tuple[int, float, float]]]
    """Method -> (seed, number, gap) of its runs; at least two methods."""
    correlation: RankCorrelation | None


def predictors(data: ReportData) -> list[Predictor]:
    """Numbers of the measures that were computed for at least two methods with a gap, in the order of the table."""
    found: list[Predictor] = []
    gaps = {s.label: s.gap_by_seed for s in data.summaries}

    def add(key: str, title: str, results: Runs[Result], value: Callable[[Result], float | None]) -> None:
        runs: dict[str, list[tuple[int, float, float]]] = {}
        for record, result in results:
            label, seed = record.spec.method.label, record.spec.seed
            number, gap = value(result), gaps.get(label, {}).get(seed)
            if number is not None and gap is not None:
                runs.setdefault(label, []).append((seed, number, gap))
        if len(runs) > 1:
            numbers, means = ([sum(run[i] for run in of) / len(of) for of in runs.values()] for i in (1, 2))
            found.append(Predictor(key, title, runs, rank_correlation(numbers, means)))

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


def section(data: ReportData) -> Section | None:
    """None where fewer than two methods have a gap and one of the numbers."""
    found = predictors(data)
    if not found:
        return None
    tested = {p.key: p.correlation for p in found if p.correlation is not None}
    corrected = dict(zip(tested, holm([correlation.p for correlation in tested.values()])))
    words = [
        "If a number of the trained weights predicted the generalization gap, it would order the methods as the gap "
        "does. Spearman's rank correlation over the methods (means over seeds) measures how far it does; p is exact, "
        "from all permutations of the methods, and Holm-corrected over the numbers tried here.",
        _verdict(found, corrected),
    ]
    titles = ("number", "methods", "rank correlation with the gap", "95 % interval", "p, corrected")
    table = Table([*titles, "predicts the gap here"], [_row(p, corrected.get(p.key)) for p in found])
    panels = [_panel(data, p) for p in found]
    return Section("predictors", "What predicts the gap?", words, panels[:2], [table], panels[2:], "The other numbers")


def _verdict(found: list[Predictor], corrected: Mapping[str, float]) -> str:
    most = max(len(p.runs) for p in found)
    if not corrected:
        if most < FEWEST:
            return f"{most} methods are too few to say: at least {FEWEST} are needed, and seven or more to see much."
        return "None of the numbers differs between the methods."
    parts = [
        f"{p.title} ({'larger' if p.correlation.rho > 0 else 'smaller'} where the gap is larger)"
        for p in found
        if p.correlation is not None and corrected[p.key] < LEVEL
    ]
    if parts:
        return f"Correlated with the gap in this comparison: {', '.join(parts)}. That does not prove a cause."
    few = " With so few methods only an almost perfect order differs from chance." if most < 7 else ""
    return f"None is shown to be correlated with the gap in this comparison of {most} methods.{few}"


def _row(predictor: Predictor, p: float | None) -> list[str]:
    found = predictor.correlation
    if found is None or p is None:
        return [predictor.title, str(len(predictor.runs)), MISSING, MISSING, MISSING, "not tested"]
    low, rho, high = (f"{v:+.2f}".replace("-", "−") for v in (found.low, found.rho, found.high))
    answer = "yes" if p < LEVEL else "not shown"
    return [predictor.title, str(len(predictor.runs)), rho, f"{low} to {high}", f"{p:.3f}", answer]


def _panel(data: ReportData, predictor: Predictor) -> Panel:
    points = []
    for label, runs in predictor.runs.items():
        seeds, numbers, gaps = zip(*runs)
        points.append(Dots(label, numbers, gaps, seeds))
    title, found = predictor.title, predictor.correlation
    figure = dots(points, data.marks, x_title=title, y_title="gap, nats")
    rho = "" if found is None else f" Rank correlation over methods {found.rho:+.2f}."
    caption = "Large marks: means over seeds. Small ones: the runs."
    alt_text = f"Gap against {title}.{rho}"
    return Panel(f"{predictor.key}-gap-figure", f"Gap against {title}", caption, alt_text, figure)
