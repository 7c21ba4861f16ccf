"""A tiny run done and opened again, as measures get it."""

from __future__ import annotations

from pathlib import Path

from test_run import make_spec
from tunewise.measures.finished import FinishedRun
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task


def finished(model: Path, data: Path, folder: Path, method: str) -> FinishedRun:
    spec = make_spec(model, data, method)
    store, task = RunStore(folder), build_task(spec)
    record = run(spec, store, task=task)
    return FinishedRun(record, store.folder(record.id), task, folder / "cache")
