"""A sweep in the terminal: how many runs of how many, the one that is running, honest remaining time."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tunewise.sweeps.monitor import Monitor, SweepListener
from tunewise.training.events import Event, Phase, RunStarted, StepDone


class SweepProgress(SweepListener):
    """Draws; Ctrl-C once asks for a stop at the next step (a checkpoint is written), twice stops at once."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.all = self.progress.add_task("runs", total=total, note="")
        self.one = self.progress.add_task("", total=None, note="", visible=False)
        self.display = Live(Group(self.progress), console=console, refresh_per_second=4)
        self.monitor: Monitor | None = None
        self._looked = 0.0
        self._old_handler: Any = None

    def __enter__(self) -> SweepProgress:
        self._old_handler = signal.signal(signal.SIGINT, self._interrupt)
        if self.live:
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.display.stop()
        signal.signal(signal.SIGINT, self._old_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("stopping at the next step; press Ctrl-C again to stop at once")

    def on(self, event: Event) -> None:
        match event:
            case RunStarted():
                resumed = f"from step {event.first_step}" if event.first_step else ""
                name = self._name(event.run_id) or f"{event.label}, seed {event.seed}"
                self.progress.reset(
                    self.one,
                    total=event.total_steps,
                    completed=event.first_step,
                    description=name,
                    note=resumed,
                    visible=True,
                )
            case StepDone():
                self.progress.update(self.one, completed=event.step, note=f"loss {event.loss:.3f}")
                if time.monotonic() - self._looked > 1.0:  # thousands of runs may be left
                    self._looked = time.monotonic()
                    self._show_remaining()
            case Phase():
                self.progress.update(self.one, note=f"{event.name}{', ' if event.detail else ''}{event.detail}")

    def swept(self, monitor: Monitor, sentence: str) -> None:
        self.monitor = monitor
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
            return ""
        left = self.monitor.remaining()
        words = f"left: {left.words(self.monitor.at_once)}" if left.timed else ""
        self.progress.update(self.all, note=words)
        return words
