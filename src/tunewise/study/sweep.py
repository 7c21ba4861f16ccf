"""A grid over any axes: plan, runs, tables, a page. Calling it again with the same spec does what is missing.

runs/sweep-<id>/sweep.json    what was asked for
runs/sweep-<id>/log.txt       what happened when; every driver adds to it
runs/sweep-<id>/table.csv     a row a run
runs/sweep-<id>/sweep.html    heat maps and the table
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunewise.device import use_device
from tunewise.errors import SpecError, StoreError
from tunewise.report.sweep import ALWAYS, SweepRow, write_sweep
from tunewise.spec import ExecutionOptions, RunSpec, StudySpec, parse
from tunewise.spec.axes import varying
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.study.executors import make_executor, with_default_jobs
from tunewise.study.loop import run_study
from tunewise.study.monitor import Monitor
from tunewise.study.plan import Plan, make_plan
from tunewise.study.policies.grid import GridPolicy
from tunewise.study.resources import check_plan
from tunewise.training.events import Interrupted, Listener
from tunewise.training.tracking import check_trackers

DEFAULT_TITLE = "Sweep"


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to, and where it is."""

    plan: Plan
    rows: list[SweepRow]
    folder: Path
    page: Path

    @property
    def failed(self) -> int:
        """Runs that failed or ran out of memory; the same call tries them again."""
        return sum(row.status in ("failed", "oom") for row in self.rows)


def sweep(
    spec: StudySpec,
    out: str | Path = "runs",
    *,
    listener: Listener | None = None,
    plan: Plan | None = None,
    **options: object,
) -> Sweep:
    """Do the runs of a grid, or what is missing of them, and write its tables.

    Two drivers may work on the same runs at once: a run is done by one of them. A run that fails does not stop the
    others.

    Args:
        spec: A study; every list in it is an axis.
        out: Folder for the runs and what is written about them.
        listener: Receives the events of all runs; a stop that it requests ends the sweep at checkpoints.
        plan: What `make_plan` returned for this spec, if it was made before.
        **options: Fields of `ExecutionOptions`: `title`, `jobs`, `executor`, `device`, `ray`, `track`, `force`.

    Returns:
        The plan, a row for each run, and where they are.

    Raises:
        SpecError, DataError, ModelError: The spec can't be used.
        InsufficientResources: Memory or disk look too small, and `force` is not set.
        StoreError: The runs folder can't be written to.
        Interrupted: The listener requested a stop; the same call goes on.

    Example:
        >>> import tunewise
        >>> spec = tunewise.StudySpec(model="roberta-base", data="mrpc.csv", methods="lora", rank=[4, 8], seeds=2)
        >>> len(spec.runs())
        4
        >>> tunewise.sweep(spec, "runs", executor="ray").page  # doctest: +SKIP
        PosixPath('runs/sweep-5b8f0a7d1c2e3f40/sweep.html')
    """
    execution = parse(ExecutionOptions, {**options, "out": str(out)})
    if spec.tuning is not None:
        raise SpecError("a sweep searches no learning rates; leave out tuning, or give learning_rate a list")
    with use_device(execution.device):
        return _sweep(spec, with_default_jobs(execution), plan, listener or Listener())


def _sweep(spec: StudySpec, execution: ExecutionOptions, plan: Plan | None, listener: Listener) -> Sweep:
    check_trackers(execution.track)
    store = RunStore(execution.out)
    plan = plan or make_plan(spec, store, listener)
    if not execution.force:
        check_plan(plan, store, execution)
    folder = begin(plan, store)
    title = execution.title or DEFAULT_TITLE
    monitor = Monitor.of(plan, store, listener)
    try:
        with monitor.log_to(folder, plan, execution), make_executor(execution, store, monitor) as executor:
            run_study(GridPolicy(plan), executor, store, monitor, tuple(execution.track))
    except Interrupted:
        _write(plan, store, folder, title)
        raise
    rows, page = _write(plan, store, folder, title)
    return Sweep(plan, rows, folder, page)


def begin(plan: Plan, store: RunStore) -> Path:
    """Make the sweep's folder, before its first run."""
    folder = store.root / f"sweep-{plan.id}"
    write_atomically(folder / "sweep.json", plan.spec.model_dump_json(indent=1) + "\n")
    return folder


def _write(plan: Plan, store: RunStore, folder: Path, title: str) -> tuple[list[SweepRow], Path]:
    """A row for each run of the plan as it is now, and the page of all."""
    differing = varying([run.spec for run in plan.runs])
    axes = [*ALWAYS, *(axis for axis in differing if axis not in (*ALWAYS, "seed"))]
    rows = [_row(run.spec, axes, store) for run in plan.runs]
    return rows, write_sweep(folder, rows, differing, title)


def _row(spec: RunSpec, axes: list[str], store: RunStore) -> SweepRow:
    status = "unfinished" if store.folder(spec.id).is_dir() else "to do"
    try:
        record = store.record(spec.id)
    except StoreError:
        record, status = None, "unreadable"
    return SweepRow.of(spec, axes, "running" if store.is_locked(spec.id) else status, record)
