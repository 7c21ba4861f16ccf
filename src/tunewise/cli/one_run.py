"""All that is known of one run, for `tunewise runs show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewise.cli.tables import aligned, format_value
from tunewise.errors import StoreError
from tunewise.store import locks
from tunewise.store.comparisons import comparisons, cost_of_run
from tunewise.store.documents import read_document
from tunewise.store.files import size
from tunewise.store.filters import flat
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured
from tunewise.store.verification import faults_of_run

_MEASURED = 6
"""Numbers of a measure that are shown; `--json` has all."""
_SPLITS = ("train", "validation", "test")


def facts(store: RunStore, run_id: str) -> dict[str, Any]:
    """What there is to know, as plain data."""
    folder = store.folder(run_id)
    locked = store.is_locked(run_id)
    status: str
    try:
        record = store.record(run_id)
        status = "running" if locked else record.status if record else "unfinished"
    except StoreError:
        record, status = None, "running" if locked else "unreadable"
    spec = record.spec if record else _planned(store.root, run_id)
    found = cost_of_run(store.root, run_id)
    costs = {"device": found[0].device, **found[1].model_dump(mode="json")} if found else None
    content = record.model_dump(mode="json") if record else {}
    return {
        "id": run_id,
        "status": status,
        "folder": str(folder),
        "held_by": locks.holder(store.lock_file(run_id)) if locked else None,
        "checkpoint": _checkpoint(folder),
        "started": content.get("started"),
        "seconds": content.get("seconds"),
        "error": content.get("error"),
        "learning_rate": spec.learning_rate if spec else None,
        "spec": spec.model_dump(mode="json") if spec else None,
        "model": content.get("model"),
        "data": content.get("data"),
        "results": content.get("results"),
        "gap": record.results.gap if record and record.results else None,
        "check": content.get("check"),
        "costs": costs,
        "measures": _measures(folder),
        "files": {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()},
        "environment": content.get("environment"),
        "problems": [] if locked else [f"{f.file}: {f.what}" for f in faults_of_run(store, run_id)],
    }


def text(known: dict[str, Any]) -> str:
    """The same for people, without what is empty."""
    head = {key: known[key] for key in ("folder", "held_by", "started", "seconds", "error")}
    if known["status"] != "done":
        head["checkpoint"] = known["checkpoint"]
    spec = {**flat(known["spec"] or {}), "learning_rate": known["learning_rate"]}
    model = {**(known["model"] or {}), "layers": len(known["model"]["layers"])} if known["model"] else {}
    data = {key: known["data"][key] for key in (*_SPLITS, "notes")} if known["data"] else {}
    environment = flat(known["environment"] or {})
    parts = [
        f"run {known['id']}: {known['status']}",
        *_pairs(head),
        *_part("specification", _pairs(spec)),
        *_part("model and data", [*_pairs(model), *_pairs(data)]),
        *_part("results", _results(known)),
        *_part("costs, by the probe", _pairs(flat(known["costs"] or {}))),
        *_part("measures", _pairs({name: _measured(one) for name, one in known["measures"].items()})),
        *_part("environment", _pairs({key.removeprefix("versions."): one for key, one in environment.items()})),
        *_part("files", aligned([[f"  {size(n)}", name] for name, n in known["files"].items()] or [["", ""]], (0,))),
        *_part("problems", [f"  {one}" for one in known["problems"]]),
    ]
    return "\n".join(parts)


def _results(known: dict[str, Any]) -> list[str]:
    results = known["results"]
    if not results:
        return []
    metrics = list(results["test"]["metrics"])
    lines = [["", "examples", "loss", *metrics]]
    for split in _SPLITS:
        one = results[split]
        scores = [format_value(one["metrics"].get(name)) for name in metrics]
        lines.append([f"  {split}", str(one["examples"]), format_value(one["loss"]), *scores])
    more = {
        "gap": f"{known['gap']:+.6g} nats (test loss - train loss)",
        "selected": f"epoch {results['selected_epoch']}, {results['selected_by']}",
        "reloaded": f"logits within {known['check']['max_logit_difference']:.2g}, by {known['check']['loader']}"
        if known["check"]
        else None,
    }
    return [*aligned(lines, right=range(1, len(lines[0]))), *_pairs(more)]


def _part(title: str, lines: list[str]) -> list[str]:
    lines = [line for line in lines if line.strip()]
    return ["", title, *lines] if lines else []


def _pairs(content: dict[str, Any]) -> list[str]:
    lines = [[f"  {key}", format_value(one)] for key, one in content.items() if one not in (None, [], {})]
    return aligned(lines) if lines else []


def _measures(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(folder.glob("measures/*.json")):
        try:
            found[file.stem] = read_document(file, Measured, "").model_dump(mode="json")
        except (StoreError, FileNotFoundError):
            continue  # among the problems
    return found


def _measured(one: dict[str, Any]) -> str:
    if one["values"] is None:
        return str(one["error"])
    numbers = [f"{key} {format_value(v)}" for key, v in flat(one["values"]).items() if isinstance(v, int | float | str)]
    more = f", and {len(numbers) - _MEASURED} more" if len(numbers) > _MEASURED else ""
    return ", ".join(numbers[:_MEASURED]) + more if numbers else f"made in {one['seconds']:.1f} s"


def _planned(root: Path, run_id: str) -> Any:
    """What a run without a record is, by what was noted when it was begun, or by a comparison."""
    if (begun := RunStore(root).begun(run_id)) is not None:
        return begun
    return next((run for _, spec in comparisons(root) for run in spec.runs() if run.id == run_id), None)


def _checkpoint(folder: Path) -> str | None:
    steps = [int(p.name.rpartition("-")[2]) for p in folder.glob("checkpoints/checkpoint-*") if p.name[-1].isdigit()]
    return f"after step {max(steps)}" if steps else None
