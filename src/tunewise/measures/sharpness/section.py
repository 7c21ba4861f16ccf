"""The report section of sharpness."""

from __future__ import annotations

from collections.abc import Callable

from tunewise.measures._estimate import Estimate
from tunewise.measures.base import Measure, SectionData
from tunewise.measures.section_parts import bars_panel, estimate_table
from tunewise.measures.sharpness.compute import SharpnessResult, SharpnessSettings, compute
from tunewise.pages.section import Section
from tunewise.registry import MEASURES


def section(data: SectionData[SharpnessResult]) -> Section:
    text = (
        "Sharpness is the second derivative of the loss along random directions that are scaled to each method's "
        "weights, row by row (arXiv 1712.09913), averaged; ε-sharpness is the rise of the loss in the worst direction "
        f"found, relative to 1 + loss. Both are over all {data.first.weights:,} weights of the merged model, so they "
        "mean the same for every method. The Hessian's figures are in each method's own trained parameters, and are "
        "not comparable between methods that scale them differently."
    )
    values = data.by_seed(lambda result: result.sharpness.value)
    axis = "sharpness, nats"
    panel = bars_panel("sharpness-figure", "Sharpness", values, data.marks, axis=axis, unit="nats", digits=".4g")
    columns: dict[str, Callable[[SharpnessResult], Estimate | None]] = {
        "loss": lambda result: result.loss,
        "sharpness": lambda result: result.sharpness,
        "ε-sharpness, %": lambda result: result.epsilon_sharpness,
        "Hessian: trace": lambda result: result.hessian.trace if result.hessian else None,
        "largest": lambda result: next(iter(result.hessian.eigenvalues), None) if result.hessian else None,
    }
    reasons = dict.fromkeys(result.hessian_missing for _, result in data.runs if result.hessian_missing)
    notes = [*data.missing, *(f"No figures of the Hessian: {reason}." for reason in reasons)]
    return Section("sharpness", "Sharpness", [text], [panel], [estimate_table(data, columns)], notes=notes)


MEASURES.register(
    "sharpness", Measure("sharpness", "sharpness", compute, SharpnessResult, section, settings=SharpnessSettings)
)
