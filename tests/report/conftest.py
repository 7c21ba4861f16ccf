"""A made-up comparison that the report's tests share: runs, histories, costs, and what was concluded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tunewise.advise.recommend import Recommendation, recommend
from tunewise.advise.summary import MethodSummary, summarise
from tunewise.errors import TunewiseError
from tunewise.measures.collect import Collected
from tunewise.report.data import ReportData
from tunewise.spec import RunSpec, StudySpec
from tunewise.store.records import (
    Check,
    CostRecord,
    CostReport,
    DataFacts,
    Environment,
    ModelFacts,
    Results,
    RunRecord,
    Scores,
    Status,
    StepTime,
)

# method: test accuracy, gap, step time in ms, trained parameters
PLAN = {
    "head": (0.742, 0.02, 118, 2_310),
    "fft": (0.921, 0.31, 412, 22_715_000),
    "lora": (0.914, 0.17, 181, 150_022),
    "cla": (0.911, 0.12, 142, 76_294),
    "paca": (0.909, 0.14, 143, 76_294),
}
ENVIRONMENT = Environment(
    tunewise="0.1.0", python="3.11.9", platform="Linux", device="cpu: made up, 2 threads", versions={"torch": "2.13.0"}
)


@dataclass(frozen=True)
class Comparison:
    """What a report is made from."""

    comparison: StudySpec
    records: list[RunRecord]
    histories: dict[str, list[dict[str, Any]]]
    costs: CostReport | None
    summaries: list[MethodSummary]
    recommendation: Recommendation | None
    folders: dict[str, str]

    @property
    def data(self) -> ReportData:
        return self.data_with({})

    def data_with(self, measured: Collected) -> ReportData:
        """The same with results of measures."""
        return ReportData(**vars(self), measured=measured)


def make(
    methods: Sequence[str] = tuple(PLAN),
    seeds: int = 3,
    labels: Sequence[str] = ("abbreviation", "entity", "number"),
    status: Mapping[tuple[str, int], Status] | None = None,
    with_costs: bool = True,
    notes: Sequence[str] = (),
    data: str = "data/trec.csv",
    error: str = "loss is nan at step 3",
    epochs: int = 3,
) -> Comparison:
    reference = "lora" if "lora" in methods else methods[0]
    spec = StudySpec.model_validate(
        {
            "model": {"path": "models/mini", "digest": "a" * 64},
            "data": {"path": data, "digest": "b" * 64},
            "methods": list(methods),
            "seeds": seeds,
            "reference": reference,
            "training": {"epochs": epochs},
        }
    )
    facts = DataFacts(train=400, validation=50, test=500, labels=list(labels), notes=list(notes))
    runs = [(run, (status or {}).get((run.method.name, run.seed), "done")) for run in spec.runs()]
    records = [_record(run, facts, state, error) for run, state in runs]
    costs = _costs(methods) if with_costs else None
    summaries = summarise(records, costs, reference)
    try:
        recommendation = recommend(summaries)
    except TunewiseError:
        recommendation = None
    return Comparison(
        comparison=spec,
        records=records,
        histories={r.id: _history(r, epochs) for r in records},
        costs=costs,
        summaries=summaries,
        recommendation=recommendation,
        folders={r.id: f"runs/{r.id}" for r in records},
    )


def _record(run: RunSpec, facts: DataFacts, status: Status, error: str) -> RunRecord:
    accuracy, gap, _, trained = PLAN[run.method.name]
    wobble = 0.002 * (run.seed - 1) + 0.001 * ((run.seed * 7 + len(run.method.name)) % 3)
    accuracy, gap = round(accuracy + wobble, 4), gap + 3 * wobble
    classes = len(facts.labels)
    loss = 3 * (1 - accuracy)

    def scores(loss: float, items: int) -> Scores:
        return Scores(loss=loss, metrics={"accuracy": accuracy, "macro_f1": accuracy - 0.01}, examples=items)

    results = Results(
        metric="accuracy",
        selected_epoch=2,
        selected_by="lowest validation loss",
        train=scores(loss - gap, facts.train),
        validation=scores(loss - 0.01, facts.validation),
        test=scores(loss, facts.test),
        confusion=[[30 + run.seed if i == j else 1 + (i + j) % 2 for j in range(classes)] for i in range(classes)],
    )
    done = status == "done"
    return RunRecord(
        id=run.id,
        status=status,
        spec=run,
        environment=ENVIRONMENT,
        started="2026-01-01T00:00:00+00:00",
        seconds=90.0 + run.seed,
        model=ModelFacts(parameters=10**7, trainable=trained, adapter=trained, head=2_310, layers=["q", "v"]),
        data=facts,
        results=results if done else None,
        check=Check(max_logit_difference=2.4e-7, examples=8, loader="peft.PeftModel.from_pretrained"),
        error=None if done else error,
    )


def _history(record: RunRecord, epochs: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, 10 * epochs + 1):
        lines.append(
            {
                "kind": "step",
                "step": step,
                "epoch": step / 10,
                "loss": 1 / step + record.spec.seed,
                "learning_rate": 1e-3,
            }
        )
        if step % 10 == 0:
            epoch = step // 10
            validation = {"loss": 0.5 / epoch + record.spec.seed, "metrics": {"accuracy": 0.5 + 0.1 * epoch}}
            lines.append({"kind": "epoch", "epoch": epoch, "train_loss": 0.4 / epoch, "validation": validation})
    return lines


def _costs(methods: Sequence[str]) -> CostReport:
    def row(method: str, milliseconds: float, trained: int, reference_line: bool = False) -> CostRecord:
        step, ratio = milliseconds / 1e3, milliseconds / 127
        return CostRecord(
            method=method,
            step=StepTime(median=step, low=0.98 * step, high=1.03 * step, steps=40),
            ratio_to_floor=ratio,
            ratio_low=0.98 * ratio,
            ratio_high=1.03 * ratio,
            samples_per_second=16 / step,
            saved_bytes=int(milliseconds * 2**19),
            peak_bytes=int((500 + milliseconds) * 2**20),
            base_bytes=400 * 2**20,
            trainable=trained,
            reference_line=reference_line,
        )

    rows = [row(method, *PLAN[method][2:]) for method in methods] + [row("frozen floor", 127, 2_310, True)]
    return CostReport(
        device="cpu: made up", batch_size=16, max_length=128, tokens=656, batch="16 texts (656 tokens)", rows=rows
    )


@pytest.fixture(scope="session")
def compared() -> Callable[..., Comparison]:
    return make


@pytest.fixture(scope="session")
def whole() -> Comparison:
    """Five methods, three seeds, all finished, costs measured."""
    return make()
