"""Live progress: which run of how many, epoch, loss, remaining time; plain lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console

from tunewise.cli.display import Display
from tunewise.cli.live_curves import LiveCurves
from tunewise.planning import Plan
from tunewise.text_format import format_duration
from tunewise.training.events import (
    EpochDone,
    Event,
    Phase,
    RunFinished,
    RunStarted,
    RunsToDo,
    StepDone,
)


@dataclass
class _UnderWay:
    name: str
    total: int
    step: int
    loss: float | None = None
    """A running mean: single batches jump about."""


class LiveProgress(Display):
    """Draws the events of a comparison, whose runs go on one at a time or side by side."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.todo = len(plan.runs) - len(plan.done)
        self.curves = LiveCurves()
        super().__init__(console, self.todo, self.curves)
        self.plan = plan
        self.begun = time.monotonic()
        self.steps_done = 0
        self.finished: set[str] = set()
        self._runs: dict[str, _UnderWay] = {}
        self._named = ""
        """The run that the last plain line was about."""

    def on(self, event: Event) -> None:
        self.curves.on(event)
        match event:
            case RunStarted():
                self.finished.discard(event.run_id)  # it had no room among others, and goes on alone
                run = _UnderWay(f"{event.label}, seed {event.seed}", event.total_steps, event.first_step)
                self._runs[event.run_id] = run
                resumed = f"from step {event.first_step}" if event.first_step else ""
                self.show(event, run.name, resumed)
                self._count()
                if not self.live:
                    number = len(self.finished) + len(self._runs)
                    self._print(event.run_id, f"[{number}/{self.todo}] {run.name} {resumed}".rstrip())
            case StepDone() if event.run_id in self._runs:
                self.steps_done += 1
                run = self._runs[event.run_id]
                run.step = event.step
                run.loss = event.loss if run.loss is None else 0.9 * run.loss + 0.1 * event.loss
                epochs = self.plan.spec.training.epochs
                self.show(event, note=f"epoch {min(int(event.epoch) + 1, epochs)}/{epochs}  loss {run.loss:.3f}")
                self._count()
            case EpochDone():
                said = f"validation loss {event.validation_loss:.4f}, {event.metric} {event.value:.4f}"
                self._say(event.run_id, f"epoch {event.epoch}: {said}")
            case Phase():
                self.show(event)
                if not event.detail and not event.name.startswith("saving"):
                    self._say(event.run_id, event.name)
            case RunsToDo():
                self.todo = len(self.finished) + event.count
                self._count()
            case RunFinished():
                self.show(event)
                self._runs.pop(event.run_id, None)
                self.finished.add(event.run_id)
                left = self._count()
                line = f"[{len(self.finished)}/{self.todo}] {event.label}, seed {event.seed}: {event.status}"
                self._print(event.run_id, f"{line} in {event.seconds:.0f} s{f'   {left}' if left else ''}")

    def steps_left(self) -> int:
        """Of the runs under way and of those that are still to begin."""
        waiting = max(0, self.todo - len(self.finished) - len(self._runs))
        return waiting * self.plan.steps + sum(run.total - run.step for run in self._runs.values())

    def _count(self) -> str:
        """Bring the bar of all up to date; returns the time left at the pace so far, in words, everything that runs do
        besides stepping included."""
        left = ""
        if self.steps_done >= 5 and (steps := self.steps_left()):
            left = f"about {format_duration((time.monotonic() - self.begun) / self.steps_done * steps)} left"
        self.progress.update(self.all, completed=len(self.finished), total=self.todo, note=left)
        return left

    def _say(self, run_id: str, words: str) -> None:
        """A plain line where there is no terminal. It says which run it is of where the line before is of another."""
        if not self.live:
            which = f"{self._runs[run_id].name}, " if run_id in self._runs and run_id != self._named else ""
            self._print(run_id, f"    {which}{words}")

    def _print(self, run_id: str, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._named = run_id or self._named
