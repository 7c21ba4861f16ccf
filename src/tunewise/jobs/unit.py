"""What one process does at a time: a run, or a pack of runs."""

from __future__ import annotations

from tunewise.jobs.messages import Work
from tunewise.packing.run_packed import run_packed
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener
from tunewise.training.prefix_task import Prefixes
from tunewise.tuning.stopping import Watch


def do_unit(
    work: Work, store: RunStore, listener: Listener, task: Task | None = None, prefixes: Prefixes | None = None
) -> list[RunRecord]:
    """Do the runs of a unit and return their records. A cache of prefixes is shared through its file unless one in
    this process's memory is handed in. Raises what `run` raises."""
    task = task or build_task(work.runs[0])
    if work.rules:
        listener = Watch(listener, work.rules, store)
    if len(work.runs) > 1:
        return run_packed(work.runs, store, task=task, listener=listener, trajectory=work.trajectory, again=work.again)
    (spec,) = work.runs
    if work.cache_prefix and prefixes is None:
        prefixes = Prefixes(task, store.root / "cache", memory=0, check=listener.check)
    record = run(
        spec,
        store,
        task=task if prefixes is None else prefixes.task_for(spec),
        listener=listener,
        trajectory=work.trajectory,
        again=work.again,
        track=work.track,
        computed=() if prefixes is None else prefixes.words(spec),
    )
    return [record]
