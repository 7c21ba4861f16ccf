"""The progress of a sweep: as of every study, with the sweep's own names and estimate of the remaining time."""

from __future__ import annotations

from rich.console import Console

from tunewise.cli.progress import StudyProgress
from tunewise.sweeps.monitor import Monitor, SweepListener
from tunewise.sweeps.planning import SweepPlan
from tunewise.training.events import RunFinished, RunStarted


class SweepProgress(StudyProgress, SweepListener):
    """Shows the events of a sweep; the runs that have ended are those that its monitor counts."""

    def __init__(self, console: Console, plan: SweepPlan) -> None:
        steps = sum(run.steps for run in plan.todo) // max(1, len(plan.todo))
        super().__init__(console, len(plan.todo), steps)
        self.monitor: Monitor | None = None

    def swept(self, monitor: Monitor, sentence: str) -> None:
        self.monitor = monitor
        for run_id in [run_id for run_id in self._running if run_id not in monitor.running]:
            self._remove(run_id)
        self.finished = set(monitor.outcomes)
        left = self._count()
        if sentence:
            line = f"[{len(self.finished)}/{self.runs}] {sentence}   {left}".rstrip()
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def remaining(self) -> str:
        if self.monitor is None or len(self.monitor.outcomes) == self.monitor.total:
            return ""
        left = self.monitor.remaining()
        return f"left: {left.words(self.monitor.at_once)}" if left.timed else ""

    def run_name(self, event: RunStarted | RunFinished) -> str:
        if self.monitor is None or event.run_id not in self.monitor.by_id:
            return super().run_name(event)
        return self.monitor.name(self.monitor.by_id[event.run_id].spec)

    def _finish(self, event: RunFinished) -> None:
        self._remove(event.run_id)
