"""The sweep itself: plan, room, runs, table. Calling it again with the same spec does what is missing, and only that.

runs/sweep-<id>/sweep.json    what was asked for
runs/sweep-<id>/log.txt       what happened when; every driver adds to it
runs/sweep-<id>/table.csv     a row a run; table.json: the same
runs/sweep-<id>/sweep.html    heat maps and the table

The runs themselves lie beside it in the runs folder, like any others.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewise.errors import SpecError
from tunewise.preflight import check_room, wanted
from tunewise.spec import StudySpec
from tunewise.store.environment import device_name
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.table import table
from tunewise.sweeps.estimates import Pace, sizes
from tunewise.sweeps.in_processes import run_in_processes
from tunewise.sweeps.local import run_local
from tunewise.sweeps.log import Log
from tunewise.sweeps.monitor import Monitor, SweepListener
from tunewise.sweeps.on_ray import run_on_ray
from tunewise.sweeps.page import write_sweep_page
from tunewise.sweeps.planning import SweepPlan, plan_sweep
from tunewise.sweeps.results import SweepRow, rows_of, write_tables
from tunewise.sweeps.room import RayOptions, SideBySide, side_by_side
from tunewise.text_format import pluralize
from tunewise.training.events import Interrupted

PREFIX = "sweep-"
SPEC = "sweep.json"
LOG = "log.txt"
DEFAULT_TITLE = "Sweep"


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to, and where it lies."""

    plan: SweepPlan
    rows: list[SweepRow]
    folder: Path
    page: Path
    failed: int
    """Runs that failed or ran out of memory; the same call tries them again."""


def sweep(
    spec: StudySpec,
    out: str | Path = "runs",
    *,
    on: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray: RayOptions | None = None,
    listener: SweepListener | None = None,
    plan: SweepPlan | None = None,
    force: bool = False,
    title: str = DEFAULT_TITLE,
) -> Sweep:
    """Do the runs of a sweep, or what is missing of them, and write its tables under `out`.

    Two drivers may work on the same runs at once: a run is done by one of them. A run that fails does not stop the
    others. With on="local" the runs are done in this process, on all of its threads, or in `jobs` processes of one
    thread each; with on="ray" `ray` says where and how. `force` starts it where
    memory or disk look too small.

    Raises what `plan_sweep` raises, `NoRoom`, `StoreError` on a full disk, and `Interrupted` where the listener asked
    for a stop.
    """
    if on not in ("local", "ray"):
        raise SpecError(f"on = {on!r}; choose 'local' or 'ray'")
    listener, ray = listener or SweepListener(), ray or RayOptions()
    if jobs is not None and (on != "local" or jobs < 1):
        raise SpecError(f"jobs = {jobs}: at least 1, and of runs on this machine alone (on='local')")
    store = RunStore(out)
    plan = plan or plan_sweep(spec, store, listener)
    if not force:
        check_sweep(plan, store.root, side_by_side(on, ray, len(plan.todo), jobs))
    folder = begin(plan, store)
    monitor = Monitor(plan, pace_of(plan, store), Log(folder / LOG), listener)
    monitor.log.say(
        f"start: {pluralize(len(plan.runs), 'run')}, {len(plan.done)} of them done already, on {on}, by process "
        f"{os.getpid()} on {socket.gethostname()}; time: {monitor.remaining().words()}"
    )
    try:
        if on == "ray":
            run_on_ray(monitor, store, folder, ray)
        elif jobs is not None:
            run_in_processes(monitor, store, jobs)
        else:
            run_local(monitor, store)
    except BaseException as error:
        said = " ".join(str(error).split())
        by = f"by {type(error).__name__}{f': {said}' if said else ''}"
        if isinstance(error, Interrupted):
            by = f"as asked, after {monitor.counts()}"
        with _told_besides(error):
            monitor.log.say(f"stopped {by}; the same command goes on")
        with _told_besides(error):
            _write(plan, store, folder, title)
        raise
    rows, page = _write(plan, store, folder, title)
    failed = sum(row.status in ("failed", "oom") for row in rows)
    monitor.log.say(f"end: {monitor.counts()}")
    return Sweep(plan, rows, folder, page, failed)


def _write(plan: SweepPlan, store: RunStore, folder: Path, title: str) -> tuple[list[SweepRow], Path]:
    rows = rows_of(plan, store)
    write_tables(folder, plan, rows)
    return rows, write_sweep_page(folder, plan, rows, title)


@contextlib.contextmanager
def _told_besides(first: BaseException) -> Iterator[None]:
    """What goes wrong on the way out of an error stands in its notes; the first one is the one to mend."""
    try:
        yield
    except Exception as second:  # noqa: BLE001 - whatever it is, it must not take the first one's place
        first.add_note(f"After that the sweep's log or tables could not be written: {second!r}")


def check_sweep(plan: SweepPlan, out: Path, at_once: SideBySide | None = None) -> None:
    """Raises `NoRoom` where the runs to do will not fit memory or disk. With `at_once=None` they are for the nodes of a
    cluster, whose memory is not this machine's: disk alone is looked at."""
    at_once = at_once or SideBySide(sharing=0)
    runs = [wanted(run.spec, run.data, run.steps, longest=run.longest) for run in plan.todo]
    check_room(runs, out, at_once=at_once.runs, sharing=at_once.sharing)


def begin(plan: SweepPlan, store: RunStore) -> Path:
    """Make the sweep's folder, before its first run."""
    folder = store.root / f"{PREFIX}{plan.id}"
    write_atomically(folder / SPEC, plan.spec.model_dump_json(indent=1) + "\n")
    return folder


def pace_of(plan: SweepPlan, store: RunStore) -> Pace:
    """What finished runs of this store say about the time of the plan's."""
    pace = Pace(device_name())
    pace.learn_from(table(store.root), sizes(plan.runs))
    return pace
