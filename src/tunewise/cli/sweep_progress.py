"""A sweep in the terminal: how many runs of how many, those under way, honest remaining time."""

from __future__ import annotations

import time

from rich.console import Console

from tunewise.cli.display import Display
from tunewise.sweeps.monitor import Monitor, SweepListener
from tunewise.training.events import Event, Phase, RunFinished, RunStarted, StepDone


class SweepProgress(Display, SweepListener):
    """Draws the events of a sweep."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        self.monitor: Monitor | None = None
        self._looked = 0.0

    def on(self, event: Event) -> None:
        match event:
            case RunStarted():
                resumed = f"from step {event.first_step}" if event.first_step else ""
                self.show(event, self._name(event.run_id) or f"{event.label}, seed {event.seed}", resumed)
            case StepDone():
                self.show(event, note=f"loss {event.loss:.3f}")
                if time.monotonic() - self._looked > 1.0:  # thousands of runs may be left
                    self._looked = time.monotonic()
                    self._show_remaining()
            case Phase() | RunFinished():
                self.show(event)

    def swept(self, monitor: Monitor, sentence: str) -> None:
        self.monitor = monitor
        for run_id in [one for one in self.bars if one not in monitor.running]:
            self.hide(run_id)
        ended = len(monitor.outcomes)
        self.progress.update(self.all, completed=ended)
        left = self._show_remaining()
        if sentence:
            line = f"[{ended}/{monitor.total}] {sentence}{f'   {left}' if left else ''}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _name(self, run_id: str) -> str:
        if self.monitor is None or run_id not in self.monitor.by_id:
            return ""
        return self.monitor.name(self.monitor.by_id[run_id].spec)

    def _show_remaining(self) -> str:
        if self.monitor is None or len(self.monitor.outcomes) == self.monitor.total:
            self.progress.update(self.all, note="")
            return ""
        left = self.monitor.remaining()
        words = f"left: {left.words(self.monitor.at_once)}" if left.timed else ""
        self.progress.update(self.all, note=words)
        return words
