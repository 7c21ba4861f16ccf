"""How far a study has come: kept by its loop, written to its log, shown by the display that listens."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewise.spec import ExecutionOptions, RunSpec
from tunewise.spec.axes import name_of, varying
from tunewise.store.folders import RunStore
from tunewise.store.records import Results, RunRecord
from tunewise.study.estimates import Pace, Remaining
from tunewise.study.plan import Plan, PlannedRun
from tunewise.text_format import format_duration, pluralize
from tunewise.training.events import Event, ForwardingListener, Interrupted, Listener, RunStarted, StepDone

_ENOUGH = 5
"""Steps of a running run from which on its own pace counts, where no run of its shape has finished."""


class StudyListener(Listener):
    """A listener that is also told how far the study has come; does nothing here."""

    def progressed(self, monitor: Monitor, message: str) -> None:
        """Something has happened; `message` says what, or is empty."""


@dataclass
class Attempt:
    """A run in progress."""

    run: PlannedRun
    started: datetime.datetime
    clock: float
    first: int | None = None
    """The step that it goes on from; None until it has started, and where another process has done it."""
    step: int = 0
    loss: float | None = None
    """A running mean: the loss of single batches varies a lot."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    @property
    def pace(self) -> float | None:
        """Seconds per step, once there are enough steps to say."""
        steps = self.step - (self.first or 0)
        return self.seconds / steps if steps >= _ENOUGH else None


class Monitor(ForwardingListener):
    """Counts, times and names the runs of a study; `at_once` runs are done side by side."""

    def __init__(self, listener: Listener, pace: Pace) -> None:
        super().__init__(listener)
        self.pace, self.at_once = pace, 1
        self.statuses: dict[str, str] = {}
        """Of the runs that have ended."""
        self.running: dict[str, Attempt] = {}
        self.left: dict[str, PlannedRun] = {}
        self._axes: list[str] = []
        self._later: list[PlannedRun] = []
        self._log: Path | None = None

    @classmethod
    def of(cls, plan: Plan, store: RunStore, listener: Listener) -> Monitor:
        """A monitor of the runs of a plan that are left, with the times of finished ones."""
        monitor = cls(listener, Pace.of(plan, store))
        monitor.expect(plan.todo, later=[])
        return monitor

    @property
    def total(self) -> int:
        """Runs that have ended and that are left."""
        return len(self.statuses) + len(self.left)

    def expect(self, upcoming: Sequence[PlannedRun], later: Sequence[PlannedRun] | None = None) -> None:
        """The runs that are left: those of the policy now, and `later` those that come after them."""
        self._later = list(later) if later is not None else self._later
        self.left = {run.id: run for run in (*upcoming, *self._later) if run.id not in self.statuses}
        self._axes = varying([run.spec for run in self.left.values()]) if later is not None else self._axes
        self._tell("")

    def name(self, spec: RunSpec) -> str:
        """A run in the words in which it differs from the others."""
        return name_of(spec, self._axes)

    def say(self, message: str) -> None:
        """Into the log, and to the listener."""
        self._write(message)
        self._tell(message)

    def begin(self, run: PlannedRun) -> None:
        """A run was handed to the executor."""
        self.running[run.id] = Attempt(run, datetime.datetime.now(datetime.UTC), time.monotonic())
        self._write(f"begun {run.id} {self.name(run.spec)}")
        self._tell("")

    def on(self, event: Event) -> None:
        attempt = self.running.get(getattr(event, "run_id", ""))
        match event:
            case RunStarted() if attempt is not None:
                attempt.first = attempt.step = event.first_step
            case StepDone() if attempt is not None:
                attempt.step = event.step
                attempt.loss = event.loss if attempt.loss is None else 0.9 * attempt.loss + 0.1 * event.loss
        super().on(event)

    def put_back(self, run: PlannedRun) -> None:
        """A run was not begun after all, or goes on later."""
        del self.running[run.id]
        self._tell("")

    def end(self, run: PlannedRun, record: RunRecord) -> None:
        """A run has come to its end, whichever."""
        attempt = self.running.pop(run.id)
        self.left.pop(run.id, None)
        self.statuses[run.id] = record.status
        if record.status == "done" and attempt.first is not None:
            self.pace.note(run, attempt.seconds, run.steps - attempt.first)
        how = "by another process" if attempt.first is None else f"in {format_duration(attempt.seconds)}"
        details = ", ".join(part for part in (how, _scores(record.results), record.error) if part)
        self.say(f"{record.status} {run.id} {self.name(run.spec)}: {details}")

    def remaining(self) -> Remaining:
        """Of all that has not ended, one after another; what is running counts with the rest of its steps."""
        paces: dict[str, float] = {}
        for attempt in self.running.values():
            if attempt.pace is not None:
                paces.setdefault(attempt.run.shape, attempt.pace)
        seconds, timed = 0.0, 0
        for run in self.left.values():
            full = self.pace.seconds(run)
            if full is None and run.shape in paces:
                full = paces[run.shape] * run.steps
            if full is None:
                continue
            timed += 1
            running = self.running.get(run.id)
            if running is None:
                seconds += full
            elif running.step:
                seconds += full * (1 - running.step / max(1, run.steps))
            else:
                seconds += max(0.0, full - running.seconds)
        return Remaining(seconds, timed, len(self.left) - timed)

    def counts(self) -> str:
        """'12 done, 1 diverged'."""
        counts = Counter(self.statuses.values())
        return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none"

    @contextlib.contextmanager
    def log_to(self, folder: Path, plan: Plan, execution: ExecutionOptions) -> Iterator[None]:
        """While it is entered, what happens is added to `log.txt` in the study's folder."""
        self._log = folder / "log.txt"
        self.expect(plan.todo, later=[])
        self._write(
            f"start: {pluralize(len(plan.runs), 'run')}, {len(plan.done)} of them done already, executor "
            f"{execution.executor_name}, process {os.getpid()} on {socket.gethostname()}; "
            f"time: {self.remaining().words()}"
        )
        try:
            yield
        except BaseException as error:
            reason = f"by {type(error).__name__}: {error}"
            if isinstance(error, Interrupted):
                reason = f"as asked, after {self.counts()}"
            with contextlib.suppress(OSError):  # the first error is the one to act on
                self._write(f"stopped {reason}; the same command goes on")
            raise
        self._write(f"end: {self.counts()}")

    def _write(self, sentence: str) -> None:
        """A line of the log, with the time (UTC) before it; in one write, so that lines of two drivers never mix."""
        if self._log is not None:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
            with self._log.open("ab", buffering=0) as file:
                file.write(f"{now}  {' '.join(sentence.split())}\n".encode())

    def _tell(self, message: str) -> None:
        if isinstance(self.inner, StudyListener):
            self.inner.progressed(self, message)


def _scores(results: Results | None) -> str:
    """'accuracy 0.912 (validation 0.920)'; empty where there are none."""
    if results is None or results.metric not in results.test.metrics:
        return ""
    validation = results.validation.metrics.get(results.metric)
    shown = "" if validation is None else f" (validation {validation:.4g})"
    return f"{results.metric} {results.test.metrics[results.metric]:.4g}{shown}"
