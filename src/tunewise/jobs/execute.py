"""The runs of a plan, done or read: one after another, or several at a time."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.errors import SpecError
from tunewise.planning import Plan
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.training.events import Listener
from tunewise.training.prefix_task import Prefixes


def execute(
    plan: Plan, store: RunStore, listener: Listener, *, again: bool = False, track: Sequence[str] = ()
) -> list[RunRecord]:
    """The records of all runs of a plan, in its order; runs that are done are read, the others made.

    Raises what `run` raises, and `SpecError` where a prefix is to be cached and there is none.
    """
    prefixes = _prefixes(plan, store)
    records = []
    for one in plan.runs:
        listener.check()
        cached = prefixes is not None and one.id not in plan.done
        record = run(
            one,
            store,
            task=prefixes.task_for(one) if prefixes and cached else plan.task,
            listener=listener,
            trajectory=plan.trajectory,
            again=again,
            track=track,
            computed=prefixes.words(one) if prefixes and cached else (),
        )
        # A run that another comparison made is called there what it is called here.
        records.append(record.model_copy(update={"spec": one}))
    return records


def _prefixes(plan: Plan, store: RunStore) -> Prefixes | None:
    """The cache of prefixes that the plan asks for; none where nothing is to be done. Raises `SpecError` where no
    method leaves a block below it frozen."""
    if not plan.spec.cache_prefix or len(plan.done) == len(plan.runs):
        return None
    prefixes = Prefixes(plan.task, store.root / "cache")
    if not any(prefixes.depth(one) for one in plan.runs[: len(plan.spec.methods)]):
        raise SpecError(
            "cache_prefix: every method trains the first block already, so there is nothing below to cache; adapt the "
            "last blocks alone (--layers 'last 2'), or leave it out"
        )
    return prefixes
