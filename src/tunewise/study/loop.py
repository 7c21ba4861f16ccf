"""The one scheduling loop: asks the policy for runs, hands them to the executor, tells the policy each result."""

from __future__ import annotations

import time
from collections import Counter, deque

from tunewise.errors import StoreError, TunewiseError
from tunewise.store.folders import RunStore
from tunewise.store.locks import RunLocked
from tunewise.store.records import RunRecord
from tunewise.study.executors.base import POLL, Executor, Job, JobEnd, WorkerDied
from tunewise.study.monitor import Monitor
from tunewise.study.plan import PlannedRun
from tunewise.study.policies.base import Policy
from tunewise.text_format import pluralize
from tunewise.training.events import Interrupted, Phase

RETRIES = 3
"""How often a run is started again after its worker was killed."""


def run_study(
    policy: Policy, executor: Executor, store: RunStore, monitor: Monitor, track: tuple[str, ...] = ()
) -> list[RunRecord]:
    """Do all runs that the policy asks for.

    A run that fails is recorded and the others go on. A run that another process has is looked at again, and taken over
    should that process stop. Raises `Interrupted` where a stop was asked for, and `StoreError` where the store can't be
    written to: no further run could be kept either.
    """
    return _Loop(policy, executor, store, monitor, track).run()


class _Loop:
    def __init__(
        self, policy: Policy, executor: Executor, store: RunStore, monitor: Monitor, track: tuple[str, ...]
    ) -> None:
        self.policy, self.executor, self.store, self.monitor, self.track = policy, executor, store, monitor, track
        self.waiting: deque[PlannedRun] = deque()
        self.locked: list[PlannedRun] = []
        self.deaths: Counter[str] = Counter()
        self.records: list[RunRecord] = []
        self._looked = time.monotonic()

    def run(self) -> list[RunRecord]:
        while True:
            self.monitor.check()
            self._ask()
            self._start()
            if self.monitor.running:
                end = self.executor.wait()
                if end is not None:
                    self._finish(end)
            elif self.locked:
                self.monitor.on(Phase("waiting for other processes", f"they have {pluralize(len(self.locked), 'run')}"))
                time.sleep(POLL)
            elif not self.waiting:
                return self.records
            self._look_at_locked()

    def _ask(self) -> None:
        runs = self.policy.ask()
        self.waiting += runs
        if runs:
            self.monitor.expect(self.policy.upcoming())
            self.monitor.at_once = max(1, min(self.executor.capacity, len(self.monitor.left)))

    def _start(self) -> None:
        while self.waiting and len(self.monitor.running) < self.executor.capacity:
            run = self.waiting.popleft()
            if self.store.is_locked(run.id):
                self.locked.append(run)
                continue
            self.monitor.begin(run)
            self.executor.start(Job(run.spec, self.track, self.policy.asks_for_trials))

    def _finish(self, end: JobEnd) -> None:
        attempt, error = self.monitor.running[end.run_id], end.error
        run = attempt.run
        if isinstance(error, RunLocked):
            self.locked.append(run)
            self.monitor.put_back(run)
            return
        if isinstance(error, Interrupted | StoreError):
            raise error
        if isinstance(error, WorkerDied) and self._goes_on(run, error):
            self.waiting.appendleft(run)
            self.monitor.put_back(run)
            return
        record = self.store.record(run.id) if error is None else None
        if record is None:
            error = error or TunewiseError("its process left no record")
            record = self.store.write_failed(run.spec, error, attempt.started, attempt.seconds)
        self.records.append(record)
        self.policy.tell(record)
        self.monitor.end(run, record)

    def _goes_on(self, run: PlannedRun, error: WorkerDied) -> bool:
        self.deaths[run.id] += 1
        if not error.killed or self.deaths[run.id] > RETRIES:
            return False
        self.monitor.say(f"run {run.id}: {error}; it goes on from its last checkpoint")
        return True

    def _look_at_locked(self) -> None:
        if self.locked and time.monotonic() - self._looked > POLL:
            self._looked = time.monotonic()
            free = [run for run in self.locked if not self.store.is_locked(run.id)]
            self.locked = [run for run in self.locked if run not in free]
            self.waiting += free
