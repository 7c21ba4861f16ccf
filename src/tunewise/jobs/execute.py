"""The runs of a plan, done or read: one after another, packed over one backbone, or in processes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewise.errors import SpecError
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import in_processes
from tunewise.jobs.unit import do_unit
from tunewise.packing.compatible import Pack, packs
from tunewise.planning import Plan
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.events import Listener
from tunewise.training.prefix_task import Prefixes
from tunewise.training.trajectory import Keep
from tunewise.tuning.search import Doing
from tunewise.tuning.stopping import StopRule


def execute(
    plan: Plan,
    store: RunStore,
    listener: Listener,
    *,
    again: bool = False,
    track: Sequence[str] = (),
    jobs: int | None = None,
    pack: int = 1,
    prefixes: Prefixes | None = None,
) -> list[RunRecord]:
    """The records of all runs of a plan, in its order; runs that are done are read, the others made.

    `jobs` processes at a time, each on one thread, or all in this process on all of its threads where it is None; the
    results are the same to the last bit for any number of jobs. With `pack` above 1 up to that many runs are batched
    over one backbone (`packing.run_packed`). `prefixes`: this plan's `prefixes_of`, where in use already.
    Raises what `run` raises, and `SpecError` for options that exclude each other or a prefix that there is not.
    """
    check_options(plan, jobs=jobs, pack=pack, track=track)
    missing = [one for one in plan.runs if one.id not in plan.done]
    prefixes = prefixes or prefixes_of(plan, store, listener)
    if missing:
        depths(plan, prefixes)
    made = do_runs(
        missing,
        store,
        listener,
        plan.task,
        jobs=jobs,
        pack=pack,
        prefixes=prefixes,
        trajectory=plan.trajectory,
        again=again,
        track=track,
    )
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
    pack: int = 1,
    prefixes: Prefixes | None = None,
    trajectory: Keep | None = None,
    again: bool = False,
    track: Sequence[str] = (),
    rules: Mapping[str, StopRule] | None = None,
) -> dict[str, RunRecord]:
    """Do these runs of one model and data set, and return their records by their ids; `rules` says which of them are
    stopped where they fall behind. Raises what `run` raises."""
    work = []
    for unit in packs(runs, pack):
        own = {one.id: rule for one in unit.runs if (rule := (rules or {}).get(one.id)) is not None}
        work.append(Work(unit.runs, trajectory, again, tuple(track), prefixes is not None, own))
    if jobs is not None and work:
        in_processes(work, jobs, store.root, listener)
        return {one.id: record for one in runs if (record := store.record(one.id)) is not None}
    made: dict[str, RunRecord] = {}
    for one in work:
        listener.check()
        made.update((record.id, record) for record in do_unit(one, store, listener, task, prefixes))
    return made


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


def doing(
    plan: Plan, store: RunStore, listener: Listener, *, jobs: int | None, pack: int, prefixes: Prefixes | None
) -> Doing:
    """Trials done in the manner of `execute`."""

    def do(trials: Sequence[RunSpec], rules: Mapping[str, StopRule]) -> None:
        depths(plan, prefixes)
        do_runs(trials, store, listener, plan.task, jobs=jobs, pack=pack, prefixes=prefixes, rules=rules)

    return do


def prefixes_of(plan: Plan, store: RunStore, listener: Listener) -> Prefixes | None:
    """The cache of prefixes that the plan asks for, with nothing in it yet."""
    return Prefixes(plan.task, store.root / "cache", check=listener.check) if plan.spec.cache_prefix else None


def depths(plan: Plan, prefixes: Prefixes | None) -> dict[str, int]:
    """By the methods' labels, how many blocks are computed once. Raises `SpecError` where no method leaves a block
    below it frozen, and what `Prefixes.found` raises: all that a cache can be refused for, before it is made."""
    if prefixes is None:
        return {}
    found = {one.method.label: prefixes.found(one) for one in first_of_each(plan)}
    if not any(found.values()):
        raise SpecError(
            "cache_prefix: every method trains the first block already, so there is nothing below to cache; adapt the "
            "last blocks alone (--layers 'last 2'), or leave it out"
        )
    return {label: prefix.depth if prefix else 0 for label, prefix in found.items()}


def first_of_each(plan: Plan) -> list[RunSpec]:
    """A run of every method."""
    return plan.runs[: len(plan.spec.methods)]
