"""The measures of finished runs: made where they are missing, read where they are there."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunewise.errors import MeasureError
from tunewise.measures.catalog import Measure, get_measure
from tunewise.measures.contract import load_measure
from tunewise.measures.finished import FinishedRun
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured, RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener, Phase
from tunewise.training.trajectory import Keep

Collected = dict[str, dict[str, Measured]]
"""By the measure's name, then by run id."""


def collect(
    names: Sequence[str], records: Sequence[RunRecord], store: RunStore, task: Task, listener: Listener
) -> Collected:
    """Make the named measures of all runs that are done, run by run, keeping each as soon as it is made.

    What a run can't be measured for is kept as that, with the reason; only a stop ends the loop.
    """
    wanted = [get_measure(name) for name in names]
    done = {record.id: record for record in records if record.status == "done"}
    found: Collected = {measure.name: {} for measure in wanted}
    for record in done.values():
        run = FinishedRun(record, store.folder(record.id), task, store.root / "cache")
        for measure in wanted:
            listener.check()
            known = read(run.folder, measure)
            if known is None:
                listener.on(Phase(f"measuring {measure.title} of {record.spec.method.label}, seed {record.spec.seed}"))
                known = _make(measure, run, listener)
                write_atomically(_file(run.folder, measure), known.model_dump_json(indent=1) + "\n")
            found[measure.name][record.id] = known
        del run
        gc.collect()  # a model's layers and adapters refer to each other
    return found


def read(folder: Path, measure: Measure) -> Measured | None:
    """A measure made earlier; None where there is none, or one of another version, or one that can't be read. A
    missing trajectory is looked for again: the run may have been made anew."""
    try:
        known = Measured.model_validate_json(_file(folder, measure).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    if known.version != measure.version or (known.error and measure.needs_trajectory):
        return None
    return known


def _make(measure: Measure, run: FinishedRun, listener: Listener) -> Measured:
    begun = time.monotonic()
    values: dict[str, Any] | None = None
    error: str | None = None
    try:
        if measure.needs_trajectory and not run.snapshots:
            raise MeasureError(no_trajectory(run.spec.method.name))
        values = load_measure(measure)(run, listener.check)
        json.dumps(values, allow_nan=False)
    except MeasureError as reason:
        values, error = None, str(reason)
    seconds = time.monotonic() - begun
    return Measured(name=measure.name, version=measure.version, seconds=seconds, values=values, error=error)


def no_trajectory(method: str) -> str:
    """What to do about a run that kept none."""
    flags = "--trajectory 20" if Keep().applies_to(method) else "--trajectory 20 --trajectory-full"
    return f"kept no trajectory; add {flags} --again to train it once more with one (the result is the same)"


def _file(folder: Path, measure: Measure) -> Path:
    return folder / "measures" / f"{measure.name}.json"
