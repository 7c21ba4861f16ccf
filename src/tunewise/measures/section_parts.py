"""What the report sections of several measures draw alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from tunewise.advise.statistics import mean_interval
from tunewise.catalog import CATALOG, Method
from tunewise.measures._estimate import Estimate
from tunewise.measures.base import MeasureResult, SectionData
from tunewise.number_format import MISSING
from tunewise.pages.figures import Bar, bars
from tunewise.pages.palette import Mark
from tunewise.pages.section import Panel, Table
from tunewise.store.records import RunRecord

BARS_CAPTION = "Large mark: mean over seeds, with its 95 % interval. Small rings: the seeds."
FAMILY_COLOURS = "A chain has the colour of its parent: the chain is solid, the parent dashed."

Result = TypeVar("Result", bound=MeasureResult)


def bars_panel(
    key: str,
    title: str,
    values: Mapping[str, Mapping[int, float]],
    marks: Mapping[str, Mark],
    *,
    axis: str,
    unit: str = "",
    digits: str = ".4f",
) -> Panel:
    """Mean, interval and seeds of each method; `values` by label and seed."""
    rows = []
    for label, by_seed in values.items():
        mean = mean_interval(list(by_seed.values()))
        rows.append(Bar(label, mean.mean, mean.low, mean.high, sorted(by_seed.items())))
    means = "; ".join(f"{row.method} {row.mean:{digits}}" for row in rows)
    return Panel(key, title, BARS_CAPTION, f"{title}, {axis}: {means}.", bars(rows, marks, axis=axis, unit=unit))


def plus_minus(values: Sequence[float], digits: str) -> str:
    """`3.00 ± 0.12`: mean over seeds with its 95 % interval; the mean alone for one seed."""
    mean = mean_interval(values)
    spread = "" if mean.half_width is None else f" ± {mean.half_width:{digits.lstrip('+')}}"
    return f"{mean.mean:{digits}}{spread}"


def median(values: Sequence[float | None]) -> float | None:
    """The median of the values that are not None."""
    known = sorted(v for v in values if v is not None)
    half = len(known) // 2
    if not known:
        return None
    return known[half] if len(known) % 2 else (known[half - 1] + known[half]) / 2


def geometric_mean(values: Sequence[float]) -> float:
    """Of numbers above 0."""
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))


def common_layers(layers_of_runs: Sequence[Mapping[str, object]]) -> list[str]:
    """Names of the layers that every run has, in the model's order."""
    shared = set.intersection(*(set(layers) for layers in layers_of_runs))
    return [name for name in layers_of_runs[0] if name in shared]


def short_layers(names: Sequence[str]) -> list[str]:
    """Names without the parts that all share: `encoder.layer.3.attention.self.query` becomes `3.query`."""
    split = [name.split(".") for name in names]
    if len(split) < 2:
        return [parts[-1] for parts in split]
    if len({len(parts) for parts in split}) == 1:
        kept = [i for i in range(len(split[0])) if len({parts[i] for parts in split}) > 1]
        return [".".join(parts[i] for i in kept) or parts[-1] for parts in split]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


@cache
def parents() -> dict[str, str]:
    """Chain -> the method that it is with one link, by the catalog's names."""
    single = {_without_names(method): name for name, method in CATALOG.items() if method.chain is None}
    chains = {name: replace(method, chain=None) for name, method in CATALOG.items() if method.chain is not None}
    return {name: single[_without_names(m)] for name, m in chains.items() if _without_names(m) in single}


def family_marks(records: Sequence[RunRecord], marks: Mapping[str, Mark]) -> dict[str, Mark]:
    """Marks with a chain and its parent in one colour (as in Figure 4 of arXiv 2606.13767)."""
    found = dict(marks)
    specs = {record.spec.method.label: record.spec.method for record in records}
    for label, spec in specs.items():
        candidates = [other for other, s in specs.items() if s.name == parents().get(spec.name)]
        candidates.sort(key=lambda other: specs[other].rank != spec.rank)
        if candidates:
            parent = marks[candidates[0]]
            found[label] = replace(marks[label], light=parent.light, dark=parent.dark, dash="solid", dash_pattern="")
            found[candidates[0]] = replace(parent, dash="dash", dash_pattern="5 3")
    return found


def has_family(records: Sequence[RunRecord]) -> bool:
    """Whether a chain and its parent are both there."""
    names = {record.spec.method.name for record in records}
    return any(parents().get(name) in names for name in names)


def _without_names(method: Method) -> Method:
    return replace(method, name="", summary="", source="")


def estimate_table(data: SectionData[Result], columns: Mapping[str, Callable[[Result], Estimate | None]]) -> Table:
    """Estimates of each method's first seed, by title; a column without any estimate is left out."""
    first = {label: data.of_method(label)[0] for label in data.labels}
    kept = {title: column for title, column in columns.items() if any(map(column, first.values()))}
    rows = [[label, *(_estimate_text(column(result)) for column in kept.values())] for label, result in first.items()]
    return Table(["method", *kept], rows, "First seed of each method, ± the 95 % interval over batches.")


def _estimate_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return f"{estimate.value:.3g} ± {estimate.value - estimate.low:.2g}".replace("-", "−")
