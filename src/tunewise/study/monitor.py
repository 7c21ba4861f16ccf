"""How far a study has come: kept by its loop, written to its log, shown by the display that listens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.spec import RunSpec
from tunewise.study.axes import name_of, varying
from tunewise.study.estimates import Pace, Remaining
from tunewise.study.log import Log
from tunewise.study.outcome import Outcome
from tunewise.study.plan import PlannedRun
from tunewise.text_format import format_duration
from tunewise.training.events import Event, ForwardingListener, Listener, RunStarted, StepDone

_ENOUGH = 5
"""Steps of a running run from which on its own pace counts, where no run of its shape has finished."""


class StudyListener(Listener):
    """A listener that is also told how far the study has come; does nothing here."""

    def progressed(self, monitor: Monitor, message: str) -> None:
        """Something has happened; `message` says what, or is empty."""


@dataclass
class _Running:
    run: PlannedRun
    since: float
    first: int = 0
    step: int = 0
    started: bool = False


class Monitor(ForwardingListener):
    """Counts, times and names the runs of a study; `at_once` runs are done side by side."""

    def __init__(self, listener: Listener, pace: Pace, at_once: int = 1) -> None:
        super().__init__(listener)
        self.pace, self.at_once = pace, at_once
        self.log: Log | None = None
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[str, _Running] = {}
        self.left: dict[str, PlannedRun] = {}
        self.axes: list[str] = []
        self._later: list[PlannedRun] = []

    @property
    def total(self) -> int:
        """Runs that have ended and that are left."""
        return len(self.outcomes) + len(self.left)

    def expect(self, upcoming: Sequence[PlannedRun], later: Sequence[PlannedRun] | None = None) -> None:
        """The runs that are left: those of the policy now, and `later` those that come after them."""
        self._later = list(later) if later is not None else self._later
        self.left = {run.id: run for run in (*upcoming, *self._later) if run.id not in self.outcomes}
        self.axes = varying([run.spec for run in self.left.values()]) if later is not None else self.axes
        self._tell("")

    def name(self, spec: RunSpec) -> str:
        """A run in the words in which it differs from the others."""
        return name_of(spec, self.axes)

    def say(self, message: str) -> None:
        """Into the log, and to the listener."""
        if self.log is not None:
            self.log.say(message)
        self._tell(message)

    def begin(self, run: PlannedRun) -> None:
        """A run was handed to the executor."""
        self.running[run.id] = _Running(run, time.monotonic())
        if self.log is not None:
            self.log.say(f"begun {run.id} {self.name(run.spec)}")
        self._tell("")

    def on(self, event: Event) -> None:
        running = self.running.get(getattr(event, "run_id", ""))
        match event:
            case RunStarted() if running is not None:
                running.started = True
                running.first = running.step = event.first_step
            case StepDone() if running is not None:
                running.step = event.step
        super().on(event)

    def steps_done(self, run_id: str) -> int | None:
        """Steps of the attempt that is under way; None where another process has done the run."""
        running = self.running[run_id]
        return running.run.steps - running.first if running.started else None

    def put_back(self, run: PlannedRun) -> None:
        """A run was not begun after all, or goes on later."""
        self.running.pop(run.id, None)
        self._tell("")

    def end(self, run: PlannedRun, outcome: Outcome) -> None:
        """A run has come to its end, whichever."""
        self.running.pop(run.id, None)
        self.left.pop(run.id, None)
        self.outcomes[run.id] = outcome
        if outcome.status == "done" and outcome.steps:
            self.pace.note(run, outcome.seconds, outcome.steps)
        how = "by another process" if outcome.steps is None else f"in {format_duration(outcome.seconds)}"
        details = ", ".join(part for part in (how, outcome.scores, outcome.record.error) if part)
        self.say(f"{outcome.status} {run.id} {self.name(run.spec)}: {details}")

    def remaining(self) -> Remaining:
        """Of all that has not ended, one after another; what is running counts with the rest of its steps."""
        own_pace: dict[str, float] = {}
        now = time.monotonic()
        for running in self.running.values():
            if running.step - running.first >= _ENOUGH:
                own_pace.setdefault(running.run.shape, (now - running.since) / (running.step - running.first))
        seconds, timed, untimed = 0.0, 0, 0
        for run in self.left.values():
            full = self.pace.seconds(run)
            if full is None and (step := own_pace.get(run.shape)) is not None:
                full = step * run.steps
            if full is None:
                untimed += 1
                continue
            timed += 1
            under_way = self.running.get(run.id)
            if under_way is None:
                seconds += full
            elif under_way.step:
                seconds += full * (1 - under_way.step / max(1, run.steps))
            else:
                seconds += max(0.0, full - (now - under_way.since))
        return Remaining(seconds, timed, untimed)

    def _tell(self, message: str) -> None:
        if isinstance(self.inner, StudyListener):
            self.inner.progressed(self, message)

    def counts(self) -> str:
        """'12 done, 1 diverged'."""
        counts = Counter(outcome.status for outcome in self.outcomes.values())
        return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none"
