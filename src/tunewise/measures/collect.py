"""The measures of finished runs: made where they are missing, read where they are there."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunewise.errors import MeasureError, StoreError, is_out_of_memory
from tunewise.measures.catalog import Measure, get_measure
from tunewise.measures.contract import load_measure
from tunewise.measures.finished import FinishedRun
from tunewise.store.documents import read_document, write_document
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured, RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener, Phase
from tunewise.training.trajectory import no_trajectory

Collected = dict[str, dict[str, Measured]]
"""By the measure's name, then by run id."""


def collect(
    names: Sequence[str],
    records: Sequence[RunRecord],
    store: RunStore,
    task: Task,
    listener: Listener,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Collected:
    """Make the named measures of all runs that are done, run by run, keeping each as soon as it is made.

    What a run can't be measured for is kept as that, with the reason; a measure that ran out of memory says so and is
    made again next time; only a stop ends the loop. `settings`: of a
    measure, by its name, what is not left as it is by default.
    """
    wanted = [get_measure(name) for name in names]
    chosen = {measure.name: settings_of(measure, (settings or {}).get(measure.name, {})) for measure in wanted}
    first: dict[str, int] = {}
    for record in records:
        first.setdefault(record.spec.method.label, record.spec.seed)
    done = {record.id: record for record in records if record.status == "done"}
    found: Collected = {measure.name: {} for measure in wanted}
    for record in done.values():
        run = FinishedRun(record, store.folder(record.id), task, store.root / "cache")
        for measure in wanted:
            listener.check()
            if measure.one_seed and record.spec.seed != first[record.spec.method.label]:
                continue
            known = read(run.folder, measure, chosen[measure.name])
            if known is None or _can_do_more(known, run):
                phase = f"measuring {measure.title} of {record.spec.method.label}, seed {record.spec.seed}"
                listener.on(Phase(phase))
                run.say = partial(_say, listener, phase)
                known, keep = _make(measure, run, listener, chosen[measure.name])
                if keep:
                    write_document(_file(run.folder, measure), known)
            found[measure.name][record.id] = known
        del run
        gc.collect()  # a model's layers and adapters refer to each other
    return found


def read(folder: Path, measure: Measure, settings: BaseModel | None = None) -> Measured | None:
    """A measure made earlier; None where there is none, or one of another version or with other settings, or one that
    can't be read. A missing trajectory is looked for again: the run may have been made anew."""
    try:
        known = read_document(_file(folder, measure), Measured, "it is made again")
    except (FileNotFoundError, StoreError):
        return None
    if known.version != measure.version or (known.error and measure.needs_trajectory):
        return None
    return known if known.settings == _plain(settings) else None


def _can_do_more(known: Measured, run: FinishedRun) -> bool:
    """Whether part of it was left out for want of a trajectory that is there now."""
    return bool(known.values and known.values.get("waits_for_trajectory") and run.snapshots)


def _make(measure: Measure, run: FinishedRun, listener: Listener, settings: BaseModel | None) -> tuple[Measured, bool]:
    """The measure, and whether it is to be kept: one that ran out of memory is tried again, there may be more."""
    begun = time.monotonic()
    values: dict[str, Any] | None = None
    error: str | None = None
    keep = True
    try:
        if measure.needs_trajectory and not run.snapshots:
            raise MeasureError(no_trajectory(run.spec.method.name))
        given = {} if settings is None else {"settings": settings}
        values = load_measure(measure)(run, listener.check, **given)
        json.dumps(values, allow_nan=False)
    except MeasureError as reason:
        values, error = None, str(reason)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        values, error, keep = None, "out of memory; ask for it again where there is more, or name fewer measures", False
    seconds = time.monotonic() - begun
    measured = Measured(
        name=measure.name,
        version=measure.version,
        seconds=seconds,
        settings=_plain(settings),
        values=values,
        error=error,
    )
    return measured, keep


def _say(listener: Listener, phase: str, detail: str) -> None:
    listener.on(Phase(phase, detail))


def settings_of(measure: Measure, given: Mapping[str, Any]) -> BaseModel | None:
    """What is set about a measure, the rest by default; None for one that has nothing to set."""
    kind = measure.settings_class
    return None if kind is None else kind.model_validate(given)


def _plain(settings: BaseModel | None) -> dict[str, Any]:
    return {} if settings is None else settings.model_dump(mode="json")


def _file(folder: Path, measure: Measure) -> Path:
    return folder / "measures" / f"{measure.name}.json"
