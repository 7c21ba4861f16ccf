"""A comparison on disk, as `tunewise compare` leaves it, without the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tunewise.spec import StudySpec
from tunewise.store.folders import RunStore
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
    StepTime,
)
from tunewise.study import evidence

ITEMS = 200
SCORES = {"head": [0.70, 0.71, 0.70], "lora": [0.905, 0.910, 0.900], "cla": [0.900, 0.905, 0.900]}
GAPS = {"head": [0.01, 0.012, 0.011], "lora": [0.100, 0.104, 0.102], "cla": [0.30, 0.31, 0.305]}
STEP = {"head": 0.05, "lora": 0.135, "cla": 0.11}  # seconds; 750 steps a run
PEAK = {"head": 500, "lora": 3000, "cla": 1500}  # MiB


def write_comparison(
    root: Path,
    scores: Mapping[str, Sequence[float | None]] = SCORES,
    *,
    title: str = "Toys",
    costs: bool = True,
    floor: float | None = None,
) -> Path:
    """The comparison's folder in the runs folder `root`. A score of None: a run that is not finished. `floor`: the
    accuracy of no learning."""
    spec = StudySpec.model_validate(
        {
            "model": {"path": "model", "digest": "a" * 64},
            "data": {"path": "toys.csv", "digest": "b" * 64},
            "methods": [{"name": name, "learning_rate": 1e-2} for name in scores],
            "seeds": len(next(iter(scores.values()))),
            "reference": "lora" if "lora" in scores else next(iter(scores)),
            "measures": "none",
        }
    )
    store = RunStore(root)
    folder = evidence.begin(spec, store, title, None)
    for run in spec.runs():
        score = scores[run.method.name][run.seed]
        if score is None:
            continue
        right = np.arange(ITEMS) < round(score * ITEMS)
        labels = np.arange(ITEMS) % 2
        predicted = np.where(right, labels, 1 - labels)
        gap = GAPS[run.method.name][run.seed % 3]
        record = RunRecord(
            id=run.id,
            status="done",
            spec=run,
            environment=Environment(tunewise="0", python="3.11", platform="any", device="cpu", versions={}),
            started="2026-01-01T00:00:00+00:00",
            seconds=60.0,
            model=ModelFacts(parameters=10**6, trainable=1000, adapter=900, head=100, layers=["q"]),
            data=DataFacts(train=4000, validation=500, test=ITEMS, labels=["no", "yes"]),
            results=Results(
                metric="accuracy",
                selected_epoch=1,
                selected_by="lowest validation loss",
                train=Scores(loss=0.2, metrics={"accuracy": 0.99, "macro_f1": 0.99}, examples=4000),
                validation=Scores(loss=0.25, metrics={"accuracy": score, "macro_f1": score}, examples=500),
                test=Scores(loss=0.2 + gap, metrics={"accuracy": score, "macro_f1": score - 0.01}, examples=ITEMS),
                floor={} if floor is None else {"accuracy": Floor(score=floor, of="best constant prediction")},
                confusion=[[int(np.sum((labels == t) & (predicted == p))) for p in (0, 1)] for t in (0, 1)],
            ),
        )
        store.folder(run.id).mkdir(parents=True)
        store.write(record)
        np.savez(store.folder(run.id) / "predictions.npz", logits=np.eye(2)[predicted], labels=labels)
    if costs:
        evidence.keep_costs(folder, _costs(list(scores)))
    return folder


def _costs(methods: Sequence[str]) -> CostReport:
    rows = [
        CostRecord(
            method=method,
            step=StepTime(median=STEP[method], low=0.99 * STEP[method], high=1.01 * STEP[method], steps=30),
            ratio_to_floor=10 * STEP[method],
            ratio_low=9.9 * STEP[method],
            ratio_high=10.1 * STEP[method],
            samples_per_second=16 / STEP[method],
            saved_bytes=10**7,
            peak_bytes=PEAK[method] * 2**20,
            base_bytes=400 * 2**20,
            trainable=1000,
        )
        for method in methods
    ]
    return CostReport(device="cpu", batch_size=16, max_length=128, tokens=2048, rows=rows)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """The folder of a finished comparison of three methods over three seeds, its costs measured."""
    return write_comparison(tmp_path / "runs")
