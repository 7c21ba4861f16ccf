"""Whether a plan's runs will fit memory and disk in the manner that they are to be done: in processes, in packs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunewise.packing.compatible import kinship, not_packable, packs
from tunewise.packing.passes import PASS
from tunewise.planning import Plan
from tunewise.preflight import Wanted, check_room, wanted_of
from tunewise.store.folders import RunStore
from tunewise.tuning.search import settled


def check_plan(plan: Plan, store: RunStore, *, jobs: int | None, pack: int, again: bool = False) -> None:
    """Raises `NoRoom` as `preflight.check_room` does, for the runs of a plan that are still to be done."""
    plan = settled(plan, store, again=again)
    wanted = wanted_of(plan)
    at_once, trials = jobs or 1, 0
    if plan.spec.tuning is None:
        at_once = max(1, min(at_once, len(packs([one.run for one in wanted], pack))))
    else:  # trials are done in the same manner, and first
        trials = plan.spec.tuning.trials
    check_room(in_packs(wanted, pack, trials=trials), store.root, at_once=at_once)


def in_packs(wanted: Sequence[Wanted], most: int, *, trials: int = 0) -> list[Wanted]:
    """The same runs, each with the number that shares its backbone, `most` at the most, and what goes through that at
    once. `trials`: of each method, packed before them.

    A pack has one backbone. Each run has its own factors, head, gradients and optimizer state, and the gradients of all
    are there until the last pass of a step is done. What is kept for the backward pass is that of one pass.
    """
    if most == 1:
        return list(wanted)
    kin = [None if not_packable(one.run) else kinship(one.run) for one in wanted]
    limit = None if torch.cuda.is_available() else PASS

    def together(of: str) -> int:
        runs = [one.run for one, its in zip(wanted, kin, strict=True) if its == of]
        methods = {one.method.model_dump_json() for one in runs}
        return min(most, max(len(runs), trials * len(methods)))

    size = {of: together(of) for of in {*kin} if of is not None}
    return [
        one if of is None else replace(one, packed=size[of], pass_tokens=limit)
        for one, of in zip(wanted, kin, strict=True)
    ]
