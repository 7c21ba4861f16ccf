"""What every live display shares: a bar for all, a bar a run under way, and Ctrl-C as a request to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from tunewise.training.events import Event, Listener, Phase, RunFinished, RunStarted, StepDone


class Display(Listener):
    """Drawn while it is entered, where there is a terminal. Ctrl-C once asks for a stop at the next step (a checkpoint
    is written), twice stops at once. `above` is drawn above the bars."""

    def __init__(self, console: Console, total: int, *above: RenderableType) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
        )
        self.all: TaskID = self.progress.add_task("runs", total=total, note="")
        self.bars: dict[str, TaskID] = {}
        self.display = Live(Group(*above, self.progress), console=console, refresh_per_second=4)
        self._old_handler: Any = None

    def __enter__(self) -> Self:
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

    def show(self, event: Event, name: str = "", note: str = "") -> None:
        """Draw a run's event in its bar: from its start, under `name`, to its end; and any other phase above."""
        bar = self.bars.get(getattr(event, "run_id", ""))
        match event:
            case RunStarted():
                self.hide(event.run_id)
                self.bars[event.run_id] = self.progress.add_task(
                    name, total=event.total_steps, completed=event.first_step, note=note
                )
            case StepDone() if bar is not None:
                self.progress.update(bar, completed=event.step, note=note)
            case Phase():
                words = f"{event.name}{', ' if event.detail else ''}{event.detail}"
                self.progress.update(self.all if bar is None else bar, note=words)
            case RunFinished():
                self.hide(event.run_id)

    def hide(self, run_id: str) -> None:
        """Take a run's bar away."""
        if run_id in self.bars:
            self.progress.remove_task(self.bars.pop(run_id))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("stopping at the next step; press Ctrl-C again to stop at once")
