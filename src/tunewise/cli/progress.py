"""The progress of a study: a bar for all runs and one for each run in progress; lines where there is no terminal."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from tunewise.study.monitor import Monitor, StudyListener
from tunewise.text_format import format_duration
from tunewise.training.events import EpochDone, Event, Phase, RunFinished, RunStarted, StepDone

LINE_EVERY = 30.0
"""Seconds between two lines about the steps of runs, where there is no terminal."""


@dataclass
class _Running:
    name: str
    bar: TaskID
    total: int
    step: int
    loss: float | None = None
    """A running mean: the loss of single batches varies a lot."""


class StudyProgress(StudyListener):
    """Shows the events of a study while it is entered. Ctrl-C once asks for a stop at the next step, after which a
    checkpoint is written; twice stops at once."""

    def __init__(self, console: Console, runs: int) -> None:
        self.console, self.runs = console, runs
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,
        )
        self.all = self.progress.add_task("runs", total=runs, note="")
        self.finished: set[str] = set()
        self.steps_done = 0
        self.monitor: Monitor | None = None
        self._running: dict[str, _Running] = {}
        self._begun = self._last_line = self._last_count = time.monotonic()
        self._old_handler: Any = None

    def __enter__(self) -> Self:
        self._old_handler = signal.signal(signal.SIGINT, self._interrupt)
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.progress.stop()
        signal.signal(signal.SIGINT, self._old_handler)

    def on(self, event: Event) -> None:
        """Show an event."""
        match event:
            case RunStarted():
                self._start(event)
            case StepDone() if event.run_id in self._running:
                self._step(self._running[event.run_id], event)
            case EpochDone() if event.run_id in self._running:
                scores = f"validation loss {event.validation_loss:.4f}, {event.metric} {event.value:.4f}"
                self._line(f"    {self._running[event.run_id].name}, epoch {event.epoch}: {scores}")
            case Phase():
                run = self._running.get(event.run_id)
                note = f"{event.name}, {event.detail}" if event.detail else event.name
                self.progress.update(run.bar if run else self.all, note=note)
            case RunFinished():
                self._finish(event)

    def progressed(self, monitor: Monitor, message: str) -> None:
        """Count as the monitor of the study does, and print what has happened."""
        self.monitor, self.runs, self.finished = monitor, monitor.total, set(monitor.outcomes)
        for run_id in [run_id for run_id in self._running if run_id not in monitor.running]:
            self._remove(run_id)
        left = self._count()
        if message:
            line = f"[{len(self.finished)}/{self.runs}] {message}   {left}".rstrip()
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def remaining(self) -> str:
        """Time left in words: by the monitor, for a single run at its pace so far; empty while that is unknown."""
        if self.monitor is not None:
            left = self.monitor.remaining() if self.monitor.left else None
            return f"left: {left.words(self.monitor.at_once)}" if left is not None and left.timed else ""
        steps = sum(run.total - run.step for run in self._running.values())
        if self.steps_done < 5 or not steps:
            return ""
        return f"about {format_duration((time.monotonic() - self._begun) / self.steps_done * steps)} left"

    def run_name(self, event: RunStarted | RunFinished) -> str:
        """How a run is called on the screen."""
        running = self.monitor.running.get(event.run_id) if self.monitor else None
        if self.monitor is not None and running is not None:
            return self.monitor.name(running.run.spec)
        return f"{event.label}, seed {event.seed}"

    def _start(self, event: RunStarted) -> None:
        self._remove(event.run_id)
        self.finished.discard(event.run_id)  # it is tried once more
        resumed = f"from step {event.first_step}" if event.first_step else ""
        name = self.run_name(event)
        bar = self.progress.add_task(name, total=event.total_steps, completed=event.first_step, note=resumed)
        self._running[event.run_id] = _Running(name, bar, event.total_steps, event.first_step)
        self._count()
        number = len(self.finished) + len(self._running)
        self._line(f"[{number}/{self.runs}] {name} {resumed}".rstrip())

    def _step(self, run: _Running, event: StepDone) -> None:
        self.steps_done += 1
        run.step = event.step
        run.loss = event.loss if run.loss is None else 0.9 * run.loss + 0.1 * event.loss
        self.progress.update(run.bar, completed=event.step, note=f"epoch {event.epoch:.1f}  loss {run.loss:.3f}")
        if time.monotonic() - self._last_count < 1.0:  # thousands of runs may be left to estimate
            return
        left = self._count()
        if time.monotonic() - self._last_line > LINE_EVERY:
            step = f"step {event.step:,}/{event.total_steps:,}, loss {run.loss:.3f}"
            self._line(f"    {run.name}: {step}{f', {left}' if left else ''}")

    def _finish(self, event: RunFinished) -> None:
        self._remove(event.run_id)
        if self.monitor is not None:  # which says what came of the run
            return
        self.finished.add(event.run_id)
        left = self._count()
        result = f"{self.run_name(event)}: {event.status} in {format_duration(event.seconds)}"
        line = f"[{len(self.finished)}/{self.runs}] {result}   {left}".rstrip()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _remove(self, run_id: str) -> None:
        if run_id in self._running:
            self.progress.remove_task(self._running.pop(run_id).bar)

    def _count(self) -> str:
        self._last_count = time.monotonic()
        left = self.remaining()
        self.progress.update(self.all, completed=len(self.finished), total=self.runs, note=left)
        return left

    def _line(self, text: str) -> None:
        """A line where there is no terminal to draw bars on."""
        if not self.console.is_terminal:
            self._last_line = time.monotonic()
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("stopping at the next step; press Ctrl-C again to stop at once")
