"""A measure in one file: how far the trained factors of a run are from zero."""

from __future__ import annotations

from pydantic import Field

from tunewise.measures.base import Measure, MeasureResult, MeasureSettings, SectionData
from tunewise.measures.finished import Check, FinishedRun
from tunewise.pages.section import Section, Table
from tunewise.registry import MEASURES


class ToySettings(MeasureSettings):
    order: float = Field(2.0, ge=1, description="of the norm")


class ToyResult(MeasureResult):
    norm: float


def compute(run: FinishedRun, settings: ToySettings, check: Check) -> ToyResult:
    total = 0.0
    for parameter in run.model.parameters():
        check()
        if parameter.requires_grad:
            total += float(parameter.detach().double().abs().pow(settings.order).sum())
    return ToyResult(norm=total ** (1 / settings.order))


def section(data: SectionData[ToyResult]) -> Section:
    norms = data.by_seed(lambda result: result.norm)
    rows = [[label, f"{sum(by_seed.values()) / len(by_seed):.4f}"] for label, by_seed in norms.items()]
    return Section("toy", "Norm of what is trained", tables=[Table(["method", "norm"], rows)], notes=data.missing)


MEASURES.register("toy", Measure("toy", "the toy norm", compute, ToyResult, section, settings=ToySettings))
