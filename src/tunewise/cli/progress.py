"""Live progress: which run of how many, epoch, loss, remaining time; plain lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console

from tunewise.cli.display import Display
from tunewise.cli.live_curves import LiveCurves
from tunewise.planning import Plan
from tunewise.training.events import (
    EpochDone,
    Event,
    Phase,
    RunFinished,
    RunStarted,
    RunsToDo,
    StepDone,
)
from tunewise.words import duration


@dataclass
class _UnderWay:
    name: str
    loss: float | None = None
    """A running mean: single batches jump about."""


class LiveProgress(Display):
    """Draws the events of a comparison, whose runs go on one at a time or side by side."""

    def __init__(self, console: Console, plan: Plan) -> None:
        todo = len(plan.runs) - len(plan.done)
        self.curves = LiveCurves()
        super().__init__(console, todo, self.curves)
        self.plan = plan
        self.todo = todo
        self.steps_to_do = todo * plan.steps
        self.steps_done = 0
        self.finished: set[str] = set()
        self.begun = time.monotonic()
        self._runs: dict[str, _UnderWay] = {}

    def on(self, event: Event) -> None:
        self.curves.on(event)
        match event:
            case RunStarted():
                name = f"{event.label}, seed {event.seed}"
                self._runs[event.run_id] = _UnderWay(name)
                self.steps_to_do -= event.first_step  # they are done already, and cost nothing now
                resumed = f"from step {event.first_step}" if event.first_step else ""
                self.show(event, name, resumed)
                if not self.live:
                    number = len(self.finished) + len(self._runs)
                    self.console.print(f"[{number}/{self.todo}] {name} {resumed}".rstrip(), markup=False)
            case StepDone():
                self.steps_done += 1
                run = self._runs[event.run_id]
                run.loss = event.loss if run.loss is None else 0.9 * run.loss + 0.1 * event.loss
                epochs = self.plan.spec.training.epochs
                self.show(event, note=f"epoch {min(int(event.epoch) + 1, epochs)}/{epochs}  loss {run.loss:.3f}")
                self.progress.update(self.all, note=self._remaining())
            case EpochDone():
                said = f"validation loss {event.validation_loss:.4f}, {event.metric} {event.value:.4f}"
                self._say(event.run_id, f"epoch {event.epoch}: {said}")
            case Phase():
                self.show(event)
                if not event.detail and not event.name.startswith("saving"):
                    self._say(event.run_id, event.name)
            case RunsToDo():
                self.todo = len(self.finished) + event.count
                self.steps_to_do = self.steps_done + event.count * self.plan.steps
                self.progress.update(self.all, total=self.todo)
            case RunFinished():
                self.show(event)
                self.finished.add(event.run_id)  # a second time where it had no room among others, and goes on alone
                count = len(self.finished)
                if event.status == "pruned":  # its steps will not be done
                    self.steps_to_do = self.steps_done + (self.todo - count) * self.plan.steps
                left = self._remaining()
                self.progress.update(self.all, completed=count, note=left)
                ended = self._runs.pop(event.run_id, None)
                name = ended.name if ended else event.run_id  # it did not get as far as its first step
                line = f"[{count}/{self.todo}] {name}: {event.status} in {event.seconds:.0f} s"
                self.console.print(f"{line}   {left}" if left else line, markup=False, highlight=False)

    def _say(self, run_id: str, words: str) -> None:
        """A plain line where there is no terminal; of several runs side by side it says which."""
        if not self.live:
            which = f"{self._runs[run_id].name}, " if run_id in self._runs and len(self._runs) > 1 else ""
            self.console.print(f"    {which}{words}", markup=False, highlight=False)

    def _remaining(self) -> str:
        """Time left at the pace so far, everything that runs do besides stepping included."""
        if self.steps_done < 5 or self.steps_done >= self.steps_to_do:
            return ""
        pace = (time.monotonic() - self.begun) / self.steps_done
        seconds = pace * (self.steps_to_do - self.steps_done)
        return f"about {duration(seconds)} left"
