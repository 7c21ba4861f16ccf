"""Everything about one run, for `tunewise runs show`."""

from __future__ import annotations

from pathlib import Path

from tunewise.errors import StoreError
from tunewise.spec import RunSpec
from tunewise.store import locks
from tunewise.store.comparisons import comparisons, cost_of_run
from tunewise.store.documents import read_document
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured
from tunewise.store.verification import faults_of_run


def collect_facts(store: RunStore, run_id: str) -> dict[str, object]:
    """What there is to know, as plain data."""
    folder = store.folder(run_id)
    locked = store.is_locked(run_id)
    try:
        record, status = store.record(run_id), "unfinished"
    except StoreError:
        record, status = None, "unreadable"
    spec = record.spec if record else _planned_spec(store, run_id)
    costs = cost_of_run(store.root, run_id)
    content = record.model_dump(mode="json") if record else {}
    keys = ("started", "seconds", "error", "model", "data", "results", "check", "environment")
    return {
        "id": run_id,
        "status": "running" if locked else record.status if record else status,
        "folder": str(folder),
        "held_by": locks.holder(store.lock_file(run_id)) if locked else None,
        "checkpoint": None if record and record.status == "done" else _checkpoint(folder),
        "learning_rate": spec.learning_rate if spec else None,
        "spec": spec.model_dump(mode="json") if spec else None,
        **{key: content.get(key) for key in keys},
        "gap": record.results.gap if record and record.results else None,
        "costs": {"device": costs[0].device, **costs[1].model_dump(mode="json")} if costs else None,
        "measures": _measures(folder),
        "files": {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()},
        "problems": [] if locked else [f"{f.file}: {f.what}" for f in faults_of_run(store, run_id)],
    }


def _measures(folder: Path) -> dict[str, object]:
    measures: dict[str, object] = {}
    for file in sorted(folder.glob("measures/*.json")):
        try:
            measures[file.stem] = read_document(file, Measured, "").model_dump(mode="json")
        except (StoreError, FileNotFoundError):
            continue  # listed under problems
    return measures


def _planned_spec(store: RunStore, run_id: str) -> RunSpec | None:
    """The spec of a run without a record: as noted at its start, or from a study."""
    if (begun := store.begun(run_id)) is not None:
        return begun
    return next((run for _, spec in comparisons(store.root) for run in spec.runs() if run.id == run_id), None)


def _checkpoint(folder: Path) -> str | None:
    steps = [int(p.name.rpartition("-")[2]) for p in folder.glob("checkpoints/checkpoint-*") if p.name[-1].isdigit()]
    return f"after step {max(steps)}" if steps else None
