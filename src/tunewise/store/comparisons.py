"""The comparisons in a runs folder, as far as the store needs them: which runs they ask for, what their costs are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import StoreError, TunewiseError
from tunewise.spec import StudySpec
from tunewise.store.documents import read_document
from tunewise.store.records import CostRecord, CostReport, TuningReport


def comparisons(root: Path) -> Iterator[tuple[Path, StudySpec]]:
    """Folder and specification of each that can be read."""
    for file in sorted(root.glob("compare-*/compare.json")):
        try:
            yield file.parent, StudySpec.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError, TunewiseError):  # pydantic's own errors are ValueErrors
            continue


def costs(file: Path) -> CostReport | None:
    """What the cost probe found; None where there is nothing to be read."""
    try:
        return read_document(file, CostReport, "")
    except (StoreError, FileNotFoundError):
        return None


def tuning(folder: Path) -> TuningReport | None:
    """A comparison's learning-rate search; None where there is nothing to be read."""
    try:
        return read_document(folder / "tuning.json", TuningReport, "")
    except (StoreError, FileNotFoundError):
        return None


def cost_of_run(root: Path, run_id: str) -> tuple[CostReport, CostRecord] | None:
    """What the probe found for the method of a run, from a comparison that the run belongs to; None where none has."""
    for folder, spec in comparisons(root):
        found = costs(folder / "costs.json")
        label = next((run.method.label for run in spec.runs() if run.id == run_id), None)
        row = next((row for row in found.rows if row.method == label), None) if found else None
        if found and row:
            return found, row
    return None
