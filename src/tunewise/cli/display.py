"""What every live display shares: a bar for all, a bar for the one that runs, and Ctrl-C as a request to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from tunewise.training.events import Listener


class Display(Listener):
    """Drawn while it is entered, where there is a terminal. Ctrl-C once asks for a stop at the next step (a checkpoint
    is written), twice stops at once. `above` is drawn above the bars."""

    def __init__(self, console: Console, total: int, steps: int | None = None, *above: RenderableType) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.all: TaskID = self.progress.add_task("runs", total=total, note="")
        self.one: TaskID = self.progress.add_task("", total=steps, note="", visible=False)
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

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("stopping at the next step; press Ctrl-C again to stop at once")
