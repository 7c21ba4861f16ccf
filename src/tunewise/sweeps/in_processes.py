"""A sweep in several processes of this machine, one thread each. Other than a comparison's, a
sweep goes on where a run fails or its process dies."""

from __future__ import annotations

import datetime
import time
from collections import Counter, deque
from dataclasses import dataclass

from tunewise.errors import StoreError, TunewiseError
from tunewise.jobs.messages import Work, told
from tunewise.jobs.pool import Died, Ended, Pool
from tunewise.store.folders import RunStore
from tunewise.store.locks import RunLocked
from tunewise.sweeps.attempt import Counting, Outcome, failed, outcome_of
from tunewise.sweeps.local import POLL
from tunewise.sweeps.monitor import Monitor
from tunewise.sweeps.planning import PlannedRun
from tunewise.text_format import pluralize
from tunewise.training.events import INTERRUPTED_MESSAGE, Interrupted, Phase

RETRIES = 3
"""How often a run is gone on with whose process was killed."""


@dataclass
class _UnderWay:
    run: PlannedRun
    since: float


class _Runs:
    """What is under way, and what its end comes to."""

    def __init__(self, monitor: Monitor, store: RunStore) -> None:
        self.monitor, self.store = monitor, store
        self.counting = Counting(monitor)
        self.under_way: dict[str, _UnderWay] = {}
        self.deaths: Counter[str] = Counter()

    def begin(self, run: PlannedRun) -> Work:
        self.under_way[run.id] = _UnderWay(run, time.time())
        self.counting.steps.pop(run.id, None)  # of a process that died
        self.monitor.begun(run.id)
        return Work(run.spec)

    def end(self, news: Ended | Died) -> Outcome:
        """Raises `Interrupted` and `StoreError` as `attempt` does."""
        known = self.under_way.pop(news.work.run.id)
        if isinstance(news, Ended):
            return self._outcome(known, news.problem)
        run = known.run
        self.deaths[run.id] += 1
        said = f"its process ended with code {news.code}: {news.words}"
        if news.signal is not None and self.deaths[run.id] <= RETRIES:
            self.monitor.say(f"the process of {run.id} was killed (signal {news.signal}); its run goes on in another")
            return Outcome(run.id, "held", 0.0, None)
        if news.signal is not None:
            said = f"its process was killed {self.deaths[run.id]} times (signal {news.signal}); try fewer --jobs"
        return self._outcome(known, told(TunewiseError(said), news.story))

    def _outcome(self, known: _UnderWay, problem: TunewiseError | None) -> Outcome:
        run, seconds = known.run, time.time() - known.since
        if isinstance(problem, RunLocked):  # which may be over by now: it is looked at again
            return Outcome(run.id, "held", 0.0, None)
        if isinstance(problem, Interrupted | StoreError):
            raise problem
        record = self.store.record(run.id)
        if problem is not None or record is None:
            started = datetime.datetime.fromtimestamp(known.since, datetime.UTC).isoformat(timespec="seconds")
            problem = problem or TunewiseError("its process left no record")
            record = failed(run.spec, self.store, problem, started, seconds)
            return outcome_of(record, seconds, self.counting.steps.get(run.id, 0))
        return outcome_of(record, seconds, self.counting.steps.get(run.id))


def run_in_processes(monitor: Monitor, store: RunStore, jobs: int) -> None:
    """Do all that is to do, at most `jobs` runs at a time. A run that another process has is looked at again, and taken
    over should that one stop; one whose process was killed goes on from its last checkpoint. Raises what `attempt`
    raises; what is under way has then stopped at a checkpoint."""
    waiting, held = deque(monitor.plan.todo), list[PlannedRun]()
    monitor.at_once = max(1, min(jobs, len(waiting)))
    runs = _Runs(monitor, store)
    looked = time.monotonic()
    with Pool(store.root, runs.counting.on) as pool:
        while waiting or held or pool.busy:
            if monitor.stop_requested:
                raise Interrupted(INTERRUPTED_MESSAGE)
            while waiting and pool.busy < jobs:
                run = waiting.popleft()
                if store.is_locked(run.id):
                    held.append(run)
                else:
                    pool.give(runs.begin(run))
            news = pool.hear()
            if news is not None:
                outcome = runs.end(news)
                if outcome.status == "held":
                    monitor.put_back(outcome.run_id)
                    held.append(monitor.by_id[outcome.run_id])
                else:
                    monitor.ended(outcome)
            if not waiting:
                pool.dismiss_idle()
            if held and time.monotonic() - looked > POLL:
                looked = time.monotonic()
                if not waiting and not pool.busy:
                    monitor.on(Phase("waiting for other processes", f"they have {pluralize(len(held), 'run')}"))
                free = [run for run in held if not store.is_locked(run.id)]
                held = [run for run in held if run not in free]
                waiting += free
