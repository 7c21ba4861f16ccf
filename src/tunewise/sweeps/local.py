"""A sweep in this process, run after run, or pack after pack."""

from __future__ import annotations

import time

from tunewise.store.folders import RunStore
from tunewise.sweeps.attempt import attempt, attempt_pack
from tunewise.sweeps.monitor import Monitor
from tunewise.sweeps.units import units
from tunewise.training.events import Phase
from tunewise.words import counted

POLL = 1.0
"""Seconds between looks at runs that other processes have."""


def run_local(monitor: Monitor, store: RunStore, pack: int = 1) -> None:
    """Do all that is to do, up to `pack` runs over one backbone. A run that another process has is left to it, and
    looked at again at the end: should that process stop, it is taken over. Raises what `attempt` raises."""
    waiting = monitor.plan.todo
    while waiting:
        held = []
        for unit in units(waiting, pack):
            monitor.check()
            for run in unit:
                if not store.is_leased(run.id):
                    monitor.begun(run.id, beside=len(unit))
            if len(unit) > 1:
                outcomes = attempt_pack([run.spec for run in unit], store, monitor)
            else:
                outcomes = [attempt(unit[0].spec, store, monitor)]
            for run, outcome in zip(unit, outcomes, strict=True):
                if outcome.status == "held":
                    monitor.put_back(run.id)
                    held.append(run)
                else:
                    monitor.ended(outcome)
        if len(held) == len(waiting):
            monitor.on(Phase("waiting for other processes", f"they have {counted(len(held), 'run')}"))
            time.sleep(POLL)
        waiting = held
