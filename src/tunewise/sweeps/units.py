"""What is done at a time: a run, or runs that are packed over one backbone."""

from __future__ import annotations

from collections.abc import Iterable

from tunewise.packing.compatible import packs
from tunewise.sweeps.planning import PlannedRun

Unit = list[PlannedRun]


def units(runs: Iterable[PlannedRun], pack: int) -> list[Unit]:
    """The runs in packs of at most `pack`, in the order of each one's first run."""
    by_id = {run.id: run for run in runs}
    return [[by_id[spec.id] for spec in one.runs] for one in packs([run.spec for run in by_id.values()], pack)]
