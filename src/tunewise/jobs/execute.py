"""The runs of a plan, done or read: one after another, packed over one backbone, or in processes side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.errors import SpecError
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import in_processes
from tunewise.jobs.unit import do_unit
from tunewise.packing.compatible import Pack, packs
from tunewise.planning import Plan
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.training.events import Listener
from tunewise.training.prefix_task import Prefixes


def execute(
    plan: Plan,
    store: RunStore,
    listener: Listener,
    *,
    again: bool = False,
    track: Sequence[str] = (),
    jobs: int | None = None,
    pack: int = 1,
) -> list[RunRecord]:
    """The records of all runs of a plan, in its order; runs that are done are read, the others made.

    `jobs` processes at a time, each on one thread, or all in this process on all of its threads where it is None; the
    results are the same to the last bit for any number of jobs. With `pack` above 1 up to that many runs are batched
    over one backbone (`packing.run_packed`). Raises what `run` raises, and `SpecError` for options that exclude each
    other or a prefix that there is not.
    """
    check_options(plan, jobs=jobs, pack=pack, track=track)
    missing = [one for one in plan.runs if one.id not in plan.done]
    prefixes = _prefixes(plan, store, listener) if missing else None
    work = [
        Work(unit.runs, plan.trajectory, again, tuple(track), cache_prefix=prefixes is not None)
        for unit in packs(missing, pack)
    ]
    made: dict[str, RunRecord] = {}
    if jobs is not None and work:
        in_processes(work, jobs, store.root, listener)
        made = {one.id: record for one in missing if (record := store.record(one.id)) is not None}
    else:
        for unit in work:
            listener.check()
            made.update((record.id, record) for record in do_unit(unit, store, listener, plan.task, prefixes))
    records = []
    for one in plan.runs:
        record = made.get(one.id) or run(one, store, task=plan.task, listener=listener)
        # A run that another comparison made is called there what it is called here.
        records.append(record.model_copy(update={"spec": one}))
    return records


def check_options(plan: Plan, *, jobs: int | None, pack: int, track: Sequence[str]) -> None:
    """Raises `SpecError` for what can't be had together."""
    if jobs is not None and jobs < 1:
        raise SpecError(f"jobs = {jobs}: at least one process is needed; leave it out to stay in this one")
    if pack < 1:
        raise SpecError(f"pack = {pack}: at least 1; leave it out to run one after another")
    if pack > 1 and plan.spec.cache_prefix:
        raise SpecError("cache_prefix and pack can't be had together: a pack computes the whole model; leave out one")
    if pack > 1 and track:
        raise SpecError("trackers follow one run at a time; leave out --pack or --track")


def packs_of(plan: Plan, pack: int) -> list[Pack]:
    """How the runs that are still to be done would be packed."""
    return packs([one for one in plan.runs if one.id not in plan.done], pack)


def _prefixes(plan: Plan, store: RunStore, listener: Listener) -> Prefixes | None:
    """The cache of prefixes that the plan asks for. Raises `SpecError` where no method leaves a block below it
    frozen."""
    if not plan.spec.cache_prefix:
        return None
    prefixes = Prefixes(plan.task, store.root / "cache", check=listener.check)
    if not any(prefixes.depth(one) for one in plan.runs[: len(plan.spec.methods)]):
        raise SpecError(
            "cache_prefix: every method trains the first block already, so there is nothing below to cache; adapt the "
            "last blocks alone (--layers 'last 2'), or leave it out"
        )
    return prefixes
