"""The progress of a study: a bar for all runs and one for each run in progress; lines where there is no terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from tunewise.study.monitor import Attempt, Monitor, StudyListener
from tunewise.training.events import EpochDone, Event, Phase, RunStarted, StepDone

LINE_EVERY = 30.0
"""Seconds between two lines about the steps of runs, where there is no terminal."""


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[StudyProgress]:
    """Shows the events of a study while it is entered. Ctrl-C once asks for a stop at the next step, after which a
    checkpoint is written; twice stops at once."""
    view = StudyProgress(console)
    handler = signal.signal(signal.SIGINT, view.interrupt)
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(LINE_EVERY / 2):
            view.report_phase()

    if not console.is_terminal:
        threading.Thread(target=report, daemon=True).start()
    try:
        with view.progress if console.is_terminal else contextlib.nullcontext():
            yield view
    finally:
        ended.set()
        signal.signal(signal.SIGINT, handler)


class StudyProgress(StudyListener):
    """Draws what the monitor of a study knows."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,
        )
        self.all = self.progress.add_task("runs", total=None, note="")
        self.monitor: Monitor | None = None
        self._bars: dict[str, TaskID] = {}
        self._phase = ""
        self._last_line = self._last_count = time.monotonic()

    def progressed(self, monitor: Monitor, message: str) -> None:
        """Count as the monitor does, and print what has happened."""
        self.monitor = monitor
        for run_id in self._bars.keys() - monitor.running.keys():
            self.progress.remove_task(self._bars.pop(run_id))
        left = self._count(monitor)
        if message:
            self._print(f"[{len(monitor.statuses)}/{monitor.total}] {message}   {left}".rstrip())

    def on(self, event: Event) -> None:
        """Show an event."""
        monitor = self.monitor
        attempt = monitor.running.get(getattr(event, "run_id", "")) if monitor else None
        match event:
            case Phase():
                note = f"{event.name}, {event.detail}" if event.detail else event.name
                self.progress.update(self._bars.get(event.run_id, self.all), note=note)
                self._phase = note
            case RunStarted() if monitor and attempt:
                self._start(event, monitor.name(attempt.run.spec), monitor)
            case StepDone() if monitor and attempt and event.run_id in self._bars:
                self._phase = ""
                self._step(event, attempt, monitor)
            case EpochDone() if monitor and attempt:
                scores = f"validation loss {event.validation_loss:.4f}, {event.metric} {event.value:.4f}"
                self._line(f"    {monitor.name(attempt.run.spec)}, epoch {event.epoch:g}: {scores}")

    def _start(self, event: RunStarted, name: str, monitor: Monitor) -> None:
        resumed = f"from step {event.first_step}" if event.first_step else ""
        if event.run_id in self._bars:  # it is tried once more
            self.progress.remove_task(self._bars[event.run_id])
        bar = self.progress.add_task(name, total=event.total_steps, completed=event.first_step, note=resumed)
        self._bars[event.run_id] = bar
        self._count(monitor)
        number = len(monitor.statuses) + len(self._bars)
        self._line(f"[{number}/{monitor.total}] {name} {resumed}".rstrip())

    def _step(self, event: StepDone, attempt: Attempt, monitor: Monitor) -> None:
        note = f"epoch {event.epoch:.1f}  loss {attempt.loss:.3f}"
        self.progress.update(self._bars[event.run_id], completed=event.step, note=note)
        if time.monotonic() - self._last_count < 1.0:  # thousands of runs may be left to estimate
            return
        left = self._count(monitor)
        if time.monotonic() - self._last_line > LINE_EVERY:
            step = f"step {event.step:,}/{event.total_steps:,}, loss {attempt.loss:.3f}"
            self._line(f"    {monitor.name(attempt.run.spec)}: {step}{f', {left}' if left else ''}")

    def report_phase(self) -> None:
        """A line about work that has no steps, such as an evaluation, where none was printed for long."""
        phase = self._phase
        if phase and time.monotonic() - self._last_line >= LINE_EVERY:
            self._line(f"    {phase}")

    def _count(self, monitor: Monitor) -> str:
        """Draw the bar of all runs; the time left in words, empty while it is not known."""
        self._last_count = time.monotonic()
        remaining = monitor.remaining()
        left = f"left: {remaining.words(monitor.at_once)}" if remaining.timed else ""
        self.progress.update(self.all, completed=len(monitor.statuses), total=monitor.total, note=left)
        return left

    def _line(self, text: str) -> None:
        """A line where there is no terminal to draw bars on."""
        if not self.console.is_terminal:
            self._last_line = time.monotonic()
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C."""
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("stopping at the next step; press Ctrl-C again to stop at once")
