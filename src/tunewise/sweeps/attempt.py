"""One run of a sweep: whatever becomes of it, the sweep goes on, unless no further run could be written either."""

from __future__ import annotations

import contextlib
import datetime
import time
import traceback
from dataclasses import dataclass
from typing import Literal

from tunewise.errors import StoreError
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.environment import environment
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.locks import RunLocked
from tunewise.store.names import TRACEBACK
from tunewise.store.records import RunRecord, Status
from tunewise.training.events import Event, ForwardingListener, Interrupted, Listener, RunStarted

Fate = Status | Literal["held"]
"""What a run came to; `held`: another process has it now."""


@dataclass(frozen=True)
class Outcome:
    """Plain values: it travels between processes."""

    run_id: str
    status: Fate
    seconds: float
    steps: int | None
    """That were done now: fewer than the run has where it was gone on with, 0 where only its end was missing; None
    where another process has done it, or has it."""
    error: str | None = None
    scores: str = ""
    """The main metric on validation and test, in words."""


class Counting(ForwardingListener):
    """Passes everything on, and counts the runs' steps."""

    def __init__(self, inner: Listener) -> None:
        super().__init__(inner)
        self.steps: dict[str, int] = {}
        """That are done now, by the runs' ids: of a run that goes on fewer than it has, of one not begun none."""

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.steps[event.run_id] = event.total_steps - event.first_step
        super().on(event)


def attempt(spec: RunSpec, store: RunStore, listener: Listener | None = None) -> Outcome:
    """Do the run, or what is missing of it.

    A run that fails leaves a record that says so in one line, and the whole story in `error.txt`; it is tried again
    when the sweep is started again. Raises `Interrupted`, and `StoreError` where the store can't be written to.
    """
    counting = Counting(listener or Listener())
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    try:
        if store.is_locked(spec.id):
            return Outcome(spec.id, "held", 0.0, None)
        record = run(spec, store, listener=counting)
    except RunLocked:
        return Outcome(spec.id, "held", 0.0, None)
    except (Interrupted, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever one run meets, the others are not to be lost to it
        record = failed(spec, store, error, started.isoformat(timespec="seconds"), time.monotonic() - clock)
        return outcome_of(record, time.monotonic() - clock, counting.steps.get(spec.id, 0))
    return outcome_of(record, time.monotonic() - clock, counting.steps.get(spec.id))


def outcome_of(record: RunRecord, seconds: float, steps: int | None) -> Outcome:
    """What a record says, and how long it took now."""
    return Outcome(record.id, record.status, seconds, steps, record.error, scores_of(record))


def failed(spec: RunSpec, store: RunStore, error: BaseException, started: str, seconds: float) -> RunRecord:
    """Write down that a run failed, and why; not where another process has taken it up meanwhile."""
    said = " ".join(str(error).split()) or type(error).__name__
    record = RunRecord(
        id=spec.id,
        status="failed",
        spec=spec,
        environment=environment(),
        started=started,
        seconds=seconds,
        error=said if len(said) <= 300 else said[:299] + "…",
    )
    with contextlib.suppress(RunLocked), store.lock(spec.id) as folder:
        write_atomically(folder / TRACEBACK, "".join(traceback.format_exception(error)))
        store.write(record)
    return record


def scores_of(record: RunRecord) -> str:
    """'accuracy 0.912 (validation 0.920)'; empty where there are none."""
    if record.results is None:
        return ""
    results = record.results
    test, validation = (split.metrics.get(results.metric) for split in (results.test, results.validation))
    shown = "" if validation is None else f" (validation {validation:.4g})"
    return "" if test is None else f"{results.metric} {test:.4g}{shown}"
