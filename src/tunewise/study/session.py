"""What a study's loop needs around it: a monitor that knows earlier times, and a log of start and end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tunewise.spec import ExecutionOptions
from tunewise.store.environment import device_name
from tunewise.store.folders import RunStore
from tunewise.store.table import table
from tunewise.study.estimates import Pace
from tunewise.study.log import Log
from tunewise.study.monitor import Monitor
from tunewise.study.plan import Plan
from tunewise.text_format import pluralize
from tunewise.training.events import Interrupted, Listener

LOG = "log.txt"


def make_monitor(plan: Plan, store: RunStore, listener: Listener) -> Monitor:
    """A monitor for the runs of a plan that are left."""
    monitor = Monitor(listener, make_pace(plan, store))
    monitor.expect(plan.todo)
    return monitor


def make_pace(plan: Plan, store: RunStore) -> Pace:
    """What finished runs of this store say about the time of the plan's."""
    pace = Pace(device_name())
    pace.learn_from(table(store.root), plan.runs)
    return pace


@contextlib.contextmanager
def log_study(
    monitor: Monitor,
    folder: Path,
    plan: Plan,
    execution: ExecutionOptions,
    at_error: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """While it is entered the monitor writes `log.txt` in the study's folder; `at_error` is called where it ends in an
    error. What goes wrong then stands in the notes of the first error, which is the one to act on."""
    monitor.log = Log(folder / LOG)
    monitor.expect(plan.todo, later=[])
    monitor.log.say(
        f"start: {pluralize(len(plan.runs), 'run')}, {len(plan.done)} of them done already, executor "
        f"{execution.executor_name}, process {os.getpid()} on {socket.gethostname()}; "
        f"time: {monitor.remaining().words()}"
    )
    try:
        yield
    except BaseException as error:
        message = " ".join(str(error).split())
        reason = f"by {type(error).__name__}{f': {message}' if message else ''}"
        if isinstance(error, Interrupted):
            reason = f"as asked, after {monitor.counts()}"
        for act in (lambda: _say(monitor, f"stopped {reason}; the same command goes on"), at_error):
            try:
                act()
            except Exception as second:  # noqa: BLE001 - it must not take the place of the first error
                error.add_note(f"After that the log or the tables of the study could not be written: {second!r}")
        raise
    monitor.log.say(f"end: {monitor.counts()}")


def _say(monitor: Monitor, message: str) -> None:
    if monitor.log is not None:
        monitor.log.say(message)
