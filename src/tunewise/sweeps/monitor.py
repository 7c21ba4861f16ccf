"""How far a sweep has come: kept by its driver, written to its log, shown by whoever listens."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from tunewise.spec import RunSpec
from tunewise.sweeps.attempt import Outcome
from tunewise.sweeps.axes import name_of, varying
from tunewise.sweeps.estimates import Pace, Remaining
from tunewise.sweeps.log import Log
from tunewise.sweeps.planning import PlannedRun, SweepPlan
from tunewise.text_format import format_duration
from tunewise.training.events import Event, ForwardingListener, Listener, RunStarted, StepDone

_ENOUGH = 5
"""Steps of a running run from which on its own pace counts, where no run of its shape has finished."""


class SweepListener(Listener):
    """A listener that is also told how far the whole sweep has come; does nothing here."""

    def swept(self, monitor: Monitor, sentence: str) -> None:
        """Something has happened; `sentence` says what, or is empty."""


@dataclass
class _Running:
    run: PlannedRun
    since: float
    first: int = 0
    step: int = 0


class Monitor(ForwardingListener):
    """Counts, times and names; `at_once` runs are done side by side."""

    inner: SweepListener

    def __init__(self, plan: SweepPlan, pace: Pace, log: Log, listener: SweepListener) -> None:
        super().__init__(listener)
        self.plan, self.pace, self.log = plan, pace, log
        self.at_once = 1
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[str, _Running] = {}
        self.by_id = {run.id: run for run in plan.runs}
        self.axes = varying([run.spec for run in plan.runs])
        self.total = len(plan.todo)

    def name(self, spec: RunSpec) -> str:
        """A run in the words in which it differs from the others."""
        return name_of(spec, self.axes)

    def say(self, sentence: str) -> None:
        """Into the log, and to whoever listens."""
        self.log.say(sentence)
        self.inner.swept(self, sentence)

    def begun(self, run_id: str, *, note: bool = True) -> None:
        """A run has been started, here or elsewhere; with `note` the log says so."""
        self.running[run_id] = _Running(self.by_id[run_id], time.monotonic())
        if note:
            self.log.say(f"begun {run_id} {self.name(self.by_id[run_id].spec)}")
        self.inner.swept(self, "")

    def on(self, event: Event) -> None:
        """What runs say that are done here."""
        match event:
            case RunStarted() if event.run_id in self.running:
                known = self.running[event.run_id]
                known.first = known.step = event.first_step
            case StepDone() if event.run_id in self.running:
                self.running[event.run_id].step = event.step
        super().on(event)

    def put_back(self, run_id: str) -> None:
        """A run was not begun after all, since another process has it, or goes on later."""
        self.running.pop(run_id, None)
        self.inner.swept(self, "")

    def ended(self, outcome: Outcome) -> None:
        """A run has come to its end, whichever."""
        self.running.pop(outcome.run_id, None)
        self.outcomes[outcome.run_id] = outcome
        run = self.by_id[outcome.run_id]
        if outcome.status == "done" and outcome.steps:
            self.pace.note(run, outcome.seconds, outcome.steps)
        words = "by another process" if outcome.steps is None else f"in {format_duration(outcome.seconds)}"
        details = ", ".join(part for part in (words, outcome.scores, outcome.error) if part)
        self.say(f"{outcome.status} {outcome.run_id} {self.name(run.spec)}: {details}")

    def remaining(self) -> Remaining:
        """Of all that has not ended, one after another; what is running counts with the rest of its steps."""
        provisional: dict[str, float] = {}
        now = time.monotonic()
        for known in self.running.values():
            done = known.step - known.first
            if done >= _ENOUGH:
                provisional.setdefault(known.run.shape, (now - known.since) / done)
        seconds, timed, untimed = 0.0, 0, 0
        for run in self.plan.todo:
            if run.id in self.outcomes:
                continue
            whole = self.pace.seconds(run)
            if whole is None and (step := provisional.get(run.shape)) is not None:
                whole = step * run.steps
            if whole is None:
                untimed += 1
                continue
            timed += 1
            under_way = self.running.get(run.id)
            if under_way is None:
                seconds += whole
            elif under_way.step:
                seconds += whole * (1 - under_way.step / max(1, run.steps))
            else:
                seconds += max(0.0, whole - (now - under_way.since))
        return Remaining(seconds, timed, untimed)

    def counts(self) -> str:
        """'12 done, 1 diverged'."""
        found = Counter(outcome.status for outcome in self.outcomes.values())
        return ", ".join(f"{count} {status}" for status, count in found.most_common()) or "none"
