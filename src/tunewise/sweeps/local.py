"""A sweep in this process, run after run."""

from __future__ import annotations

import time

from tunewise.store.folders import RunStore
from tunewise.sweeps.attempt import attempt
from tunewise.sweeps.monitor import Monitor
from tunewise.text_format import pluralize
from tunewise.training.events import Phase

POLL = 1.0
"""Seconds between looks at runs that other processes have."""


def run_local(monitor: Monitor, store: RunStore) -> None:
    """Do all that is to do. A run that another process has is left to it, and
    looked at again at the end: should that process stop, it is taken over. Raises what `attempt` raises."""
    waiting = monitor.plan.todo
    while waiting:
        held = []
        for run in waiting:
            monitor.check()
            if not store.is_locked(run.id):
                monitor.begun(run.id)
            outcome = attempt(run.spec, store, monitor)
            if outcome.status == "held":
                monitor.put_back(run.id)
                held.append(run)
            else:
                monitor.ended(outcome)
        if len(held) == len(waiting):
            monitor.on(Phase("waiting for other processes", f"they have {pluralize(len(held), 'run')}"))
            time.sleep(POLL)
        waiting = held
