"""Measures of finished runs: computed where they are missing, read where they are on disk."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from tunewise.errors import MeasureError, StoreError, is_out_of_memory
from tunewise.measures.base import Measure, MeasureResult, MeasureSettings
from tunewise.measures.finished import FinishedRun
from tunewise.registry import MEASURES
from tunewise.store.documents import read_document, write_document
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured, RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener, Phase

Collected = dict[str, dict[str, Measured]]
"""By the measure's name, then by run id."""
Settings = Mapping[str, Mapping[str, object]]
"""By the measure's name: the settings that differ from the defaults."""
_OUT_OF_MEMORY = "out of memory; ask for it again where there is more, or name fewer measures"


def collect(
    names: Sequence[str],
    records: Sequence[RunRecord],
    store: RunStore,
    task: Task,
    listener: Listener,
    settings: Settings | None = None,
) -> Collected:
    """Compute the named measures of all finished runs, run by run, and write each at once."""
    measures = _with_settings(names, settings)
    first_seed: dict[str, int] = {}
    for record in records:
        first_seed.setdefault(record.spec.method.label, record.spec.seed)
    finished = {record.id: record for record in records if record.status == "done"}
    collected: Collected = {measure.name: {} for measure, _ in measures}
    for record in finished.values():
        run = FinishedRun(record, store.folder(record.id), task, store.root / "cache")
        label, seed = record.spec.method.label, record.spec.seed
        for measure, chosen in measures:
            listener.check()
            if measure.first_seed_only and seed != first_seed[label]:
                continue
            measured = _read(run.folder, measure, chosen)
            if measured is None:
                phase = f"measuring {measure.title} of {label}, seed {seed}"
                listener.on(Phase(phase))
                run.report_progress = partial(_report_progress, listener, phase)
                measured = _compute(measure, run, listener, chosen)
                if measured.error != _OUT_OF_MEMORY:
                    write_document(_file(run.folder, measure), measured)
            collected[measure.name][record.id] = measured
        del run
        gc.collect()  # a model's layers and adapters refer to each other
    return collected


def read_measures(
    names: Sequence[str], records: Sequence[RunRecord], store: RunStore, settings: Settings | None = None
) -> Collected:
    """The named measures of finished runs, as far as they are on disk."""
    return {
        measure.name: {
            record.id: measured
            for record in records
            if record.status == "done" and (measured := _read(store.folder(record.id), measure, chosen)) is not None
        }
        for measure, chosen in _with_settings(names, settings)
    }


def result_of(measure: Measure[MeasureResult], measured: Measured) -> MeasureResult | None:
    """The typed result; None where the measure does not apply to the run."""
    return None if measured.values is None else measure.result.model_validate(measured.values)


def _with_settings(
    names: Sequence[str], settings: Settings | None
) -> list[tuple[Measure[MeasureResult], MeasureSettings]]:
    measures: list[Measure[MeasureResult]] = [MEASURES.get(name) for name in names]
    return [(measure, measure.parse_settings((settings or {}).get(measure.name, {}))) for measure in measures]


def _read(folder: Path, measure: Measure[MeasureResult], settings: MeasureSettings) -> Measured | None:
    """None where there is no file, it can't be read, or its version or settings are others."""
    try:
        measured = read_document(_file(folder, measure), Measured, "it is computed again")
        result_of(measure, measured)
    except (FileNotFoundError, StoreError, ValidationError):
        return None
    same = measured.version == measure.version and measured.settings == settings.model_dump(mode="json")
    return measured if same else None


def _compute(
    measure: Measure[MeasureResult], run: FinishedRun, listener: Listener, settings: MeasureSettings
) -> Measured:
    begun = time.monotonic()
    values: dict[str, object] | None = None
    error: str | None = None
    try:
        values = measure.compute(run, settings, listener.check).model_dump(mode="json")
    except MeasureError as reason:
        error = str(reason)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        error = _OUT_OF_MEMORY
    return Measured(
        name=measure.name,
        version=measure.version,
        seconds=time.monotonic() - begun,
        settings=settings.model_dump(mode="json"),
        values=values,
        error=error,
    )


def _report_progress(listener: Listener, phase: str, detail: str) -> None:
    listener.on(Phase(phase, detail))


def _file(folder: Path, measure: Measure[MeasureResult]) -> Path:
    return folder / "measures" / f"{measure.name}.json"
