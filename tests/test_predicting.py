"""Predictions of finished runs: those that the run saved, and those of PEFT and transformers alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunewise
from contracts import test_tasks
from tunewise.run import run
from tunewise.spec import RunSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.study.plan import make_plan
from tunewise.tasks.generation import normalize_spaces


@dataclass(frozen=True)
class Finished:
    """A run with a test file of its own, in the file's order."""

    record: RunRecord
    folder: Path
    test: Path

    @property
    def saved(self) -> Any:
        return np.load(self.folder / "predictions.npz")


def train(spec: StudySpec, folder: Path, **changes: Any) -> Finished:
    store = RunStore(folder / "runs")
    spec = make_plan(spec.model_copy(update=changes), store).spec  # with the digests
    run_spec: RunSpec = spec.runs()[0]
    record = run(run_spec, store)
    assert record.status == "done", record.error
    return Finished(record, store.folder(record.id), Path(spec.data.test or spec.data.path))


def with_test(case: str, folder: Path) -> StudySpec:
    """The spec of a case of the contracts; every fourth record of its data is a test file."""
    spec = test_tasks.MAKE[case](folder).spec
    data = Path(spec.data.path)
    test = data.with_name(f"test-{data.name}")
    if data.is_dir():
        for file in sorted(data.rglob("*.png"))[::4]:
            (test / file.parent.name).mkdir(parents=True, exist_ok=True)
            file.rename(test / file.parent.name / file.name)
    else:
        lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
        header = [lines.pop(0)] if data.suffix == ".csv" else []
        test.write_text("".join([*header, *lines[::4]]), encoding="utf-8")
        data.write_text("".join([*header, *(line for i, line in enumerate(lines) if i % 4)]), encoding="utf-8")
    training = spec.training.model_copy(update={"epochs": 2, "batch_size": 8, "learning_rate": 1e-2})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"test": str(test)}), "training": training})


CASES = ["text", "pair", "image", "causal", "prompts", "generation", "regression", "choice", "tags"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    known: dict[str, Finished] = {}

    def get(case: str) -> Finished:
        if case not in known:
            folder = tmp_path_factory.mktemp(case)
            known[case] = train(with_test(case, folder), folder)
        return known[case]

    return get


# --- the run's own test predictions ---------------------------------------------------------------


def expected_rows(done: Finished) -> list[dict[str, Any]]:
    """What the saved outputs of the test split say, by the definitions."""
    outputs, labels = torch.from_numpy(done.saved["logits"]).double(), done.record.data.labels
    kind = done.record.spec.task
    if kind == "regression":
        return [{"prediction": float(number)} for number in outputs[:, 0]]
    if kind == "causal":
        return [{"loss": float(s / n), "perplexity": float(torch.exp(s / n)), "tokens": int(n)} for s, _, n in outputs]
    if kind == "tags":
        return [{f"probability_{label}": float(p) for label, p in zip(labels, row.sigmoid())} for row in outputs]
    rows = []
    for row in outputs:
        scores = row.exp() / row.exp().sum()
        named = {f"probability_{label}": float(score) for label, score in zip(labels, scores, strict=True)}
        rows.append({"prediction": labels[int(row.argmax())], **named})
    return rows


@pytest.mark.parametrize("case", [case for case in CASES if case != "generation"])
def test_predictions_are_those_that_the_run_saved_of_its_test_data(case: str, finished) -> None:
    done = finished(case)
    rows = tunewise.predict(done.folder, done.test)
    expected = expected_rows(done)
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_generated_texts_are_right_where_the_run_found_an_exact_match(finished) -> None:
    done = finished("generation")
    rows = tunewise.predict(done.folder, done.test)
    with done.test.open(encoding="utf-8", newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    right = [normalize_spaces(str(row["prediction"])) == answer for row, answer in zip(rows, answers, strict=True)]
    assert right == [bool(value) for value in done.saved["logits"][:, 3]]
    assert all(float(row["log_probability"]) < 0 for row in rows)
