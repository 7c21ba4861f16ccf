"""Everything about one run, for `tunewise runs show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewise.cli.tables import aligned, format_value
from tunewise.errors import StoreError
from tunewise.spec import RunSpec
from tunewise.store import locks
from tunewise.store.comparisons import comparisons, cost_of_run
from tunewise.store.documents import read_document
from tunewise.store.files import size
from tunewise.store.filters import flat
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured
from tunewise.store.verification import faults_of_run

_MOST_NUMBERS = 6
"""Numbers of a measure that are shown; `--json` has all."""
_SPLITS = ("train", "validation", "test")
_HEAD = ("folder", "held_by", "checkpoint", "started", "seconds", "error")


def collect_facts(store: RunStore, run_id: str) -> dict[str, Any]:
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
    known = ("started", "seconds", "error", "model", "data", "results", "check", "environment")
    return {
        "id": run_id,
        "status": "running" if locked else record.status if record else status,
        "folder": str(folder),
        "held_by": locks.holder(store.lock_file(run_id)) if locked else None,
        "checkpoint": None if record and record.status == "done" else _checkpoint(folder),
        "learning_rate": spec.learning_rate if spec else None,
        "spec": spec.model_dump(mode="json") if spec else None,
        **{key: content.get(key) for key in known},
        "gap": record.results.gap if record and record.results else None,
        "costs": {"device": costs[0].device, **costs[1].model_dump(mode="json")} if costs else None,
        "measures": _measures(folder),
        "files": {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()},
        "problems": [] if locked else [f"{f.file}: {f.what}" for f in faults_of_run(store, run_id)],
    }


def format_facts(facts: dict[str, Any]) -> str:
    """The same as text, without what is empty."""
    model, data = facts["model"] or {}, facts["data"] or {}
    sizes = {key: data.get(key) for key in (*_SPLITS, "notes")}
    sections = {
        f"run {facts['id']}: {facts['status']}": {key: facts[key] for key in _HEAD},
        "specification": {**flat(facts["spec"] or {}), "learning_rate": facts["learning_rate"]},
        "model and data": {**model, "layers": len(model.get("layers", ())), **sizes},
        "results": _results(facts),
        "costs, by the probe": flat(facts["costs"] or {}),
        "measures": {name: _numbers(measured) for name, measured in facts["measures"].items()},
        "environment": flat(facts["environment"] or {}),
        "files": {name: size(count) for name, count in facts["files"].items()},
        "problems": dict.fromkeys(facts["problems"], ""),
    }
    lines: list[str] = []
    for title, content in sections.items():
        rows = [[f"  {key}", format_value(value)] for key, value in content.items() if value not in (None, [], {}, 0)]
        lines += ["", title, *aligned(rows)] if rows else []
    return "\n".join(lines[1:])


def _results(facts: dict[str, Any]) -> dict[str, Any]:
    results, check = facts["results"], facts["check"]
    if not results:
        return {}
    scores = {
        split: f"loss {format_value(results[split]['loss'])}, {_pairs(results[split]['metrics'])}, "
        f"{results[split]['examples']} examples"
        for split in _SPLITS
    }
    return {
        **scores,
        "gap": f"{facts['gap']:+.6g} nats (test loss - train loss)",
        "selected": f"epoch {results['selected_epoch']}, {results['selected_by']}",
        "reloaded": f"logits within {check['max_logit_difference']:.2g}, by {check['loader']}" if check else None,
    }


def _pairs(content: dict[str, Any]) -> str:
    return ", ".join(f"{key} {format_value(value)}" for key, value in content.items())


def _measures(folder: Path) -> dict[str, dict[str, Any]]:
    measures = {}
    for file in sorted(folder.glob("measures/*.json")):
        try:
            measures[file.stem] = read_document(file, Measured, "").model_dump(mode="json")
        except (StoreError, FileNotFoundError):
            continue  # listed under problems
    return measures


def _numbers(measured: dict[str, Any]) -> str:
    if measured["values"] is None:
        return str(measured["error"])
    numbers = {key: value for key, value in flat(measured["values"]).items() if isinstance(value, int | float | str)}
    shown = _pairs(dict(list(numbers.items())[:_MOST_NUMBERS]))
    more = f", and {len(numbers) - _MOST_NUMBERS} more" if len(numbers) > _MOST_NUMBERS else ""
    return shown + more if numbers else f"computed in {measured['seconds']:.1f} s"


def _planned_spec(store: RunStore, run_id: str) -> RunSpec | None:
    """The spec of a run without a record: as noted at its start, or from a study."""
    if (begun := store.begun(run_id)) is not None:
        return begun
    return next((run for _, spec in comparisons(store.root) for run in spec.runs() if run.id == run_id), None)


def _checkpoint(folder: Path) -> str | None:
    steps = [int(p.name.rpartition("-")[2]) for p in folder.glob("checkpoints/checkpoint-*") if p.name[-1].isdigit()]
    return f"after step {max(steps)}" if steps else None
