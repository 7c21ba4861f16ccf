"""Synthetic runs and costs: what the advice reads is varied, the rest is filler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tunewise.advise.summary import MethodSummary, summarise
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec
from tunewise.store.records import (
    CostRecord,
    CostReport,
    DataFacts,
    Environment,
    Floor,
    ModelFacts,
    Results,
    RunRecord,
    Scores,
    Status,
    StepTime,
)

ENVIRONMENT = Environment(tunewise="0", python="3.11", platform="any", device="cpu", versions={})
TRAINABLE = {"fft": 1_000_000, "lora": 20_000, "cla": 10_000, "r-cla": 10_000, "head": 1_000}


def make_record(
    method: str,
    seed: int,
    accuracy: float = 0.9,
    gap: float = 0.1,
    status: Status = "done",
    items: int = 1000,
    data: str = "data.csv",
    seconds: float = 60.0,
) -> RunRecord:
    spec = RunSpec(
        model=ModelSpec(path="model"),
        data=DataSpec(path=data),
        method=MethodSpec(name=method, learning_rate=1e-2),
        seed=seed,
    )
    half = items // 2
    results = Results(
        metric="accuracy",
        selected_epoch=1,
        selected_by="lowest validation loss",
        train=Scores(loss=0.2, metrics={"accuracy": 0.99}, examples=4000),
        validation=Scores(loss=0.25, metrics={"accuracy": accuracy}, examples=500),
        test=Scores(loss=0.2 + gap, metrics={"accuracy": accuracy, "macro_f1": accuracy - 0.01}, examples=items),
        floor={"accuracy": Floor(score=0.5, of="best constant prediction")},
        confusion=[[half, 0], [0, items - half]],
    )
    done = status == "done"
    trainable = TRAINABLE.get(method, 15_000)
    return RunRecord(
        id=spec.id,
        status=status,
        spec=spec,
        environment=ENVIRONMENT,
        started="2025-01-01T00:00:00Z",
        seconds=seconds,
        model=ModelFacts(parameters=10**6, trainable=trainable, adapter=trainable, head=1000, layers=["q"]),
        data=DataFacts(train=4000, validation=500, test=items, labels=["no", "yes"]),
        results=results if done else None,
        error=None if done else "it went wrong",
    )


def make_records(
    scores: dict[str, Sequence[float]], gaps: dict[str, Sequence[float]] | None = None, items: int = 1000
) -> list[RunRecord]:
    """Finished runs from accuracies by method, seeds 0, 1, ..."""
    gaps = gaps or {}
    return [
        make_record(method, seed, accuracy, gaps.get(method, [0.1] * len(row))[seed], items=items)
        for method, row in scores.items()
        for seed, accuracy in enumerate(row)
    ]


def make_costs(ratios: dict[str, float], spread: float = 0.01, **peaks: int) -> CostReport:
    """A probe with these ratios to the frozen floor, each +- `spread`; peaks in bytes, 1 GiB unless given."""
    rows = [
        CostRecord(
            method=method,
            step=StepTime(median=0.1 * ratio, low=0.09 * ratio, high=0.11 * ratio, steps=30),
            ratio_to_floor=ratio,
            ratio_low=ratio - spread,
            ratio_high=ratio + spread,
            samples_per_second=160 / ratio,
            saved_bytes=10_000_000,
            peak_bytes=peaks.get(method.replace("-", "_"), 2**30),
            base_bytes=2**29,
            trainable=TRAINABLE.get(method, 15_000),
        )
        for method, ratio in ratios.items()
    ]
    return CostReport(device="cpu", batch_size=16, max_length=128, tokens=2048, rows=rows)


def make_summaries(
    scores: dict[str, Sequence[float]],
    ratios: dict[str, float] | None = None,
    gaps: dict[str, Sequence[float]] | None = None,
    items: int = 1000,
    reference: str = "lora",
    **missing: dict[str, int],
) -> list[MethodSummary]:
    """Summaries of finished runs; `cla={"diverged": 1}` adds lost runs to a method."""
    rows = summarise(make_records(scores, gaps, items), make_costs(ratios) if ratios else None, reference)
    return [replace(row, missing=missing.get(row.label, {})) for row in rows]


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    return make_record


@pytest.fixture
def records() -> Callable[..., list[RunRecord]]:
    return make_records


@pytest.fixture
def costs() -> Callable[..., CostReport]:
    return make_costs


@pytest.fixture
def summaries() -> Callable[..., list[MethodSummary]]:
    return make_summaries
