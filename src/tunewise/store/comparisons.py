"""The comparisons in a runs folder: which runs they ask for, and what their costs are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import StoreError, TunewiseError
from tunewise.spec import StudySpec
from tunewise.store.documents import read_document
from tunewise.store.records import CostRecord, CostReport


def comparisons(root: Path) -> Iterator[tuple[Path, StudySpec]]:
    """Folder and specification of each comparison that can be read."""
    for file in sorted(root.glob("compare-*/compare.json")):
        try:
            yield file.parent, StudySpec.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError, TunewiseError):  # pydantic's own errors are ValueErrors
            continue


def cost_of_run(root: Path, run_id: str) -> tuple[CostReport, CostRecord] | None:
    """The costs of the method of a run, from a comparison that the run belongs to; None where it was not measured."""
    for folder, spec in comparisons(root):
        labels = [run.method.label for run in spec.runs() if run.id == run_id]
        try:
            report = read_document(folder / "costs.json", CostReport, "")
        except (StoreError, FileNotFoundError):
            continue
        for row in report.rows:
            if row.method in labels:
                return report, row
    return None
