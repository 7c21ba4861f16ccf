"""The runs of a plan, done or read: one after another, or in processes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewise.errors import SpecError
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import in_processes
from tunewise.planning import Plan
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener
from tunewise.training.trajectory import SnapshotOptions
from tunewise.tuning.search import Doing
from tunewise.tuning.stopping import StopRule, Watch


def execute(
    plan: Plan, store: RunStore, listener: Listener, *, track: Sequence[str] = (), jobs: int | None = None
) -> list[RunRecord]:
    """The records of all runs of a plan, in its order; runs that are done are read, the others made."""
    check_options(jobs)
    missing = [one for one in plan.runs if one.id not in plan.done]
    made = do_runs(missing, store, listener, plan.task, jobs=jobs, trajectory=plan.trajectory, track=track)
    records = []
    for one in plan.runs:
        record = made.get(one.id) or run(one, store, task=plan.task, listener=listener)
        # A run that another comparison made is called there what it is called here.
        records.append(record.model_copy(update={"spec": one}))
    return records


def do_runs(
    runs: Sequence[RunSpec],
    store: RunStore,
    listener: Listener,
    task: Task,
    *,
    jobs: int | None = None,
    trajectory: SnapshotOptions | None = None,
    track: Sequence[str] = (),
    rules: Mapping[str, StopRule] | None = None,
) -> dict[str, RunRecord]:
    """Do these runs of one model and data set, and return their records by their ids."""
    rules = rules or {}
    work = [Work(one, trajectory, tuple(track), rules.get(one.id)) for one in runs]
    if jobs is not None and work:
        in_processes(work, jobs, store.root, listener)
        return {one.id: record for one in runs if (record := store.record(one.id)) is not None}
    made: dict[str, RunRecord] = {}
    for one in work:
        listener.check()
        record = do_work(one, store, listener, task)
        made[record.id] = record
    return made


def do_work(work: Work, store: RunStore, listener: Listener, task: Task | None = None) -> RunRecord:
    """One run, in this process."""
    if work.rule is not None:
        listener = Watch(listener, {work.run.id: work.rule}, store)
    return run(work.run, store, task=task, listener=listener, trajectory=work.trajectory, track=work.track)


def check_options(jobs: int | None) -> None:
    """Raises `SpecError` for a number of processes that can't be."""
    if jobs is not None and jobs < 1:
        raise SpecError(f"jobs = {jobs}: at least one process is needed; leave it out to stay in this one")


def doing(plan: Plan, store: RunStore, listener: Listener, *, jobs: int | None) -> Doing:
    """Trials done in the manner of `execute`."""

    def do(trials: Sequence[RunSpec], rules: Mapping[str, StopRule]) -> None:
        do_runs(trials, store, listener, plan.task, jobs=jobs, rules=rules)

    return do
