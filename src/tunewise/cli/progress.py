"""Live progress: which run of how many, epoch, loss, remaining time; plain lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import TaskID

from tunewise.cli.display import Display
from tunewise.cli.live_curves import LiveCurves
from tunewise.planning import Plan
from tunewise.training.events import (
    EpochDone,
    Event,
    OfRun,
    Phase,
    RunFinished,
    RunStarted,
    RunsToDo,
    StepDone,
)


class LiveProgress(Display):
    """Draws the events of a comparison."""

    def __init__(self, console: Console, plan: Plan) -> None:
        todo = len(plan.runs) - len(plan.done)
        self.curves = LiveCurves()
        super().__init__(console, todo, plan.steps, self.curves)
        self.plan = plan
        self.todo = todo
        self.steps_to_do = todo * plan.steps
        self.steps_done = 0
        self.finished = 0
        self.begun = time.monotonic()
        self.current = ""
        self._others: dict[str, tuple[str, int, TaskID]] = {}
        self._loss: float | None = None

    def on(self, event: Event) -> None:
        self.curves.on(event)
        match event:
            case RunStarted():
                self.current = f"{event.label}, seed {event.seed}"
                self._loss = None
                self.steps_to_do -= event.first_step  # they are done already, and cost nothing now
                resumed = f"from step {event.first_step}" if event.first_step else ""
                self.progress.reset(
                    self.one,
                    total=event.total_steps,
                    completed=event.first_step,
                    description=self.current,
                    note=resumed,
                    visible=True,
                )
                if not self.live:
                    self.console.print(
                        f"[{self.finished + 1}/{self.todo}] {self.current} {resumed}".rstrip(), markup=False
                    )
            case StepDone():
                self.steps_done += 1
                # A running mean: single batches jump about.
                self._loss = event.loss if self._loss is None else 0.9 * self._loss + 0.1 * event.loss
                epochs = self.plan.spec.training.epochs
                self.progress.update(
                    self.one,
                    completed=event.step,
                    note=f"epoch {min(int(event.epoch) + 1, epochs)}/{epochs}  loss {self._loss:.3f}",
                )
                self.progress.update(self.all, note=self._remaining())
            case EpochDone():
                if not self.live:
                    self.console.print(
                        f"    epoch {event.epoch}: validation loss {event.validation_loss:.4f}, "
                        f"{event.metric} {event.value:.4f}",
                        markup=False,
                        highlight=False,
                    )
            case OfRun():
                self._beside(event.run_id, event.event)
            case Phase():
                self.progress.update(self.one, note=f"{event.name}{', ' if event.detail else ''}{event.detail}")
                if not self.live and not event.detail and not event.name.startswith("saving"):
                    self.console.print(f"    {event.name}", markup=False)
            case RunsToDo():
                self.todo = self.finished + event.count
                self.steps_to_do = self.steps_done + event.count * self.plan.steps
                self.progress.update(self.all, total=self.todo)
            case RunFinished():
                self.finished += 1
                if event.status == "pruned":  # its steps will not be done
                    self.steps_to_do = self.steps_done + (self.todo - self.finished) * self.plan.steps
                self.progress.update(self.all, completed=self.finished, note=self._remaining())
                line = f"[{self.finished}/{self.todo}] {self.current}: {event.status} in {event.seconds:.0f} s"
                left = self._remaining()
                self.console.print(f"{line}   {left}" if left else line, markup=False, highlight=False)

    def _beside(self, run_id: str, event: Event) -> None:
        """One of several runs that go on side by side: a line of its own while it does."""
        label, seed, line = self._others.get(run_id, ("", 0, None))
        self.curves.current = (label, seed)
        self.curves.on(event)
        match event:
            case RunStarted():
                self.steps_to_do -= event.first_step
                name = f"{event.label}, seed {event.seed}"
                line = self.progress.add_task(name, total=event.total_steps, completed=event.first_step, note="")
                self._others[run_id] = (event.label, event.seed, line)
            case StepDone() if line is not None:
                self.steps_done += 1
                self.progress.update(line, completed=event.step, note=f"loss {event.loss:.3f}")
                self.progress.update(self.all, note=self._remaining())
            case Phase() if line is not None:
                self.progress.update(line, note=event.name)
            case RunFinished() if line is not None:
                self.progress.remove_task(line)
                self.current = f"{label}, seed {seed}"
                self.on(event)

    def _remaining(self) -> str:
        """Time left at the pace so far, everything that runs do besides stepping included."""
        if self.steps_done < 5 or self.steps_done >= self.steps_to_do:
            return ""
        pace = (time.monotonic() - self.begun) / self.steps_done
        seconds = pace * (self.steps_to_do - self.steps_done)
        return f"about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
