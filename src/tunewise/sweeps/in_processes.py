"""A sweep in several processes of this machine, a run each, on one thread each. Other than a comparison's, a sweep goes
on where a run fails or its process dies."""

from __future__ import annotations

import contextlib
import datetime
import queue
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from tunewise.errors import StoreError, TunewiseError
from tunewise.jobs import messages
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import PATIENCE, Worker
from tunewise.store.folders import RunStore
from tunewise.sweeps.attempt import Outcome, failed, outcome_of
from tunewise.sweeps.local import POLL
from tunewise.sweeps.monitor import Monitor
from tunewise.sweeps.planning import PlannedRun
from tunewise.training.events import STOPPED, Interrupted, OfRun, Phase, RunStarted

RETRIES = 3
"""How often a run is gone on with whose process was killed."""


@dataclass
class _UnderWay:
    run: PlannedRun
    since: float
    steps: int = 0


class _Pool:
    """The processes that there are, and what each is doing."""

    def __init__(self, monitor: Monitor, store: RunStore) -> None:
        self.monitor, self.store = monitor, store
        self.inbox: queue.Queue[tuple[Worker, str | None]] = queue.Queue()
        self.idle: list[Worker] = []
        self.busy: dict[Worker, _UnderWay] = {}
        self.deaths: Counter[str] = Counter()

    def give(self, run: PlannedRun) -> None:
        worker = self.idle.pop() if self.idle else Worker(self.store.root, self.inbox)
        self.busy[worker] = _UnderWay(run, time.time())
        self.monitor.begun(run.id)
        worker.give(Work((run.spec,)))

    def hear(self) -> Outcome | None:
        """What has come of a run since, if anything. Raises `Interrupted` and `StoreError` as `attempt` does."""
        try:
            worker, line = self.inbox.get(timeout=0.2)
        except queue.Empty:
            return None
        if line is None:
            return self._gone(worker)
        news = messages.heard(line)
        if isinstance(news, tuple):
            run_id, event = news
            known = self.busy.get(worker)
            if known is not None and isinstance(event, RunStarted):
                known.steps = event.total_steps - event.first_step
            self.monitor.on(run_id, event, OfRun(run_id, event))
            return None
        known = self.busy.pop(worker)
        self.idle.append(worker)
        return self._outcome(known, news)

    def _outcome(self, known: _UnderWay, problem: TunewiseError | None) -> Outcome:
        run = known.run
        if isinstance(problem, Interrupted):
            raise problem
        if isinstance(problem, StoreError):
            if self.store.is_leased(run.id):
                return Outcome(run.id, "held", 0.0, 0)
            raise problem
        record = self.store.record(run.id)
        if problem is not None or record is None:
            started = datetime.datetime.fromtimestamp(known.since, datetime.UTC).isoformat(timespec="seconds")
            problem = problem or TunewiseError("its process left no record")
            record = failed(run.spec, self.store, problem, started, time.time() - known.since)
        return outcome_of(record, time.time() - known.since, known.steps)

    def _gone(self, worker: Worker) -> Outcome | None:
        """A process has ended; with a run, where it was not asked to."""
        worker.dismiss()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(PATIENCE)
        code, words = worker.process.returncode, worker.last_words()
        worker.errors.close()
        if worker in self.idle:
            self.idle.remove(worker)
        known = self.busy.pop(worker, None)
        if known is None:
            return None
        run = known.run
        self.deaths[run.id] += 1
        if code is not None and code < 0 and self.deaths[run.id] <= RETRIES:
            self.monitor.put_back(run.id)
            self.monitor.say(f"the process of {run.id} was killed (signal {-code}); its run goes on in another")
            return Outcome(run.id, "held", 0.0, 0)
        said = f"its process ended with code {code}: {words}"
        if code is not None and code < 0:
            said = f"its process was killed {self.deaths[run.id]} times (signal {-code}); try fewer --jobs"
        return self._outcome(known, TunewiseError(said))

    def stop(self) -> None:
        """Let all that are at work write a checkpoint, and wait for them."""
        workers = [*self.busy, *self.idle]
        for worker in workers:
            worker.dismiss()
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End what is left."""
        for worker in [*self.busy, *self.idle]:
            worker.dismiss()
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            worker.errors.close()


def run_in_processes(monitor: Monitor, store: RunStore, jobs: int) -> None:
    """Do all that is to do, at most `jobs` runs at a time. A run that another process has is looked at again, and taken
    over should that one stop; one whose process was killed goes on from its last checkpoint. Raises what `attempt`
    raises; what is under way has then stopped at a checkpoint."""
    monitor.at_once = max(1, min(jobs, len(monitor.plan.todo)))
    waiting, held = deque(monitor.plan.todo), list[PlannedRun]()
    looked = time.monotonic()
    with contextlib.closing(_Pool(monitor, store)) as pool, _stopping(pool):
        while waiting or held or pool.busy:
            if monitor.listener.stop_requested:
                raise Interrupted(STOPPED)
            while waiting and len(pool.busy) < jobs:
                run = waiting.popleft()
                if store.is_leased(run.id):
                    held.append(run)
                else:
                    pool.give(run)
            outcome = pool.hear()
            if outcome is not None and outcome.status == "held":
                monitor.put_back(outcome.run_id)
                held.append(monitor.by_id[outcome.run_id])
            elif outcome is not None:
                monitor.ended(outcome)
            if held and time.monotonic() - looked > POLL:
                looked = time.monotonic()
                if not waiting and not pool.busy:
                    monitor.listener.on(Phase("waiting for other processes", f"they have {len(held)} runs"))
                free = [run for run in held if not store.is_leased(run.id)]
                held = [run for run in held if run not in free]
                waiting += free


@contextlib.contextmanager
def _stopping(pool: _Pool) -> Iterator[None]:
    """At the end, and at an error that leaves time for it, the processes leave by themselves; else they are ended."""
    try:
        yield
    except TunewiseError:
        pool.stop()
        raise
    pool.stop()
